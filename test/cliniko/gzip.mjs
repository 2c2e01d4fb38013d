// Gzips answers whose beginning came before: a page's patients, which take long, are compressed once and
// kept; what follows them is compressed each time. The result is one ordinary gzip stream.
// Also gzips more than there is memory for.

import { constants, deflateRawSync } from 'node:zlib';

// In this thread, because handing a page to another one costs more than it saves.
const FASTEST = { level: 1 };
// Ends at a byte, and says that more is to come.
const UNFINISHED = { ...FASTEST, finishFlush: constants.Z_SYNC_FLUSH };
// Deflate, no name, no time, an unknown system: RFC 1952.
const HEADER = Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
const POLYNOMIAL = 0xedb88320;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let remainder = byte;
  for (let bit = 0; bit < 8; bit++) remainder = remainder & 1 ? (remainder >>> 1) ^ POLYNOMIAL : remainder >>> 1;
  return remainder;
});

/** The CRC-32 of bytes that follow others of which it is known; node:zlib has it from version 20.15 only. */
function crc32(bytes, crc = 0) {
  let remainder = ~crc;
  for (let i = 0; i < bytes.length; i++) remainder = TABLE[(remainder ^ bytes[i]) & 0xff] ^ (remainder >>> 8);
  return ~remainder >>> 0;
}

/** What is deflated, with its CRC-32 and its length, as a gzip stream. */
function wrap(deflated, crc, length) {
  const trailer = Buffer.alloc(8);
  trailer.writeUInt32LE(crc, 0);
  trailer.writeUInt32LE(length % 2 ** 32, 4);
  return Buffer.concat([HEADER, ...deflated, trailer]);
}

/** The same bytes so many times, gzipped as small as can be. */
export function gzipRepeated(bytes, times) {
  const compressed = deflateRawSync(bytes, { finishFlush: constants.Z_SYNC_FLUSH });
  let crc = 0;
  for (let n = 0; n < times; n++) crc = crc32(bytes, crc);
  return wrap([...Array(times).fill(compressed), deflateRawSync(Buffer.alloc(0))], crc, times * bytes.length);
}

/** Compressed beginnings by key, up to a number of bytes; then all are forgotten. */
export class Gzipper {
  #most;
  #bytes = 0;
  #beginnings = new Map();

  constructor(mostBytes) {
    this.#most = mostBytes;
  }

  forget() {
    this.#beginnings.clear();
    this.#bytes = 0;
  }

  #compress(key, make) {
    const bytes = make();
    const beginning = { compressed: deflateRawSync(bytes, UNFINISHED), crc: crc32(bytes), length: bytes.length };
    if (this.#bytes > this.#most) this.forget();
    this.#beginnings.set(key, beginning);
    this.#bytes += beginning.compressed.length;
    return beginning;
  }

  /** Gzips a beginning, which make() makes unless the one of this key is known, with what follows it. */
  gzip(key, make, rest) {
    const { compressed, crc, length } = this.#beginnings.get(key) ?? this.#compress(key, make);
    return wrap([compressed, deflateRawSync(rest, FASTEST)], crc32(rest, crc), length + rest.length);
  }
}
