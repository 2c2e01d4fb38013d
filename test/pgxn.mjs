// Holds the META.json of an unpacked archive against the PGXN Meta Spec, version 1.0.0, and against the
// archive itself: what it names must be there, and its versions those of the control file.
//
//	node pgxn.mjs DIRECTORY

import { existsSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const LICENSES = [
  'agpl_3', 'apache_1_1', 'apache_2_0', 'artistic_1', 'artistic_2', 'bsd', 'freebsd', 'gfdl_1_2', 'gfdl_1_3',
  'gpl_1', 'gpl_2', 'gpl_3', 'lgpl_2_1', 'lgpl_3_0', 'mit', 'mozilla_1_0', 'mozilla_1_1', 'openssl', 'perl_5',
  'postgresql', 'qpl_1_0', 'ssleay', 'sun', 'zlib', 'open_source', 'restricted', 'unrestricted', 'unknown',
];
const VERSION = /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+)?$/;
const PHASES = ['configure', 'build', 'test', 'runtime', 'develop'];
const RELATIONS = ['requires', 'recommends', 'suggests', 'conflicts'];
const REQUIRED = ['name', 'version', 'abstract', 'maintainer', 'license', 'provides', 'meta-spec'];
const OPTIONAL = ['description', 'generated_by', 'tags', 'no_index', 'prereqs', 'release_status', 'resources'];

const directory = process.argv[2];
const read = (name) => readFileSync(join(directory, name), 'utf8');
const meta = JSON.parse(read('META.json'));
const controlVersion = read(`${meta.name}.control`).match(/^default_version *= *'(.*)'/m)?.[1];
const problems = [];

function expect(holds, problem) {
  if (!holds) problems.push(problem);
}

function isText(value) {
  return typeof value === 'string' && value.trim() !== '';
}

function isUrl(value) {
  return isText(value) && /^https:\/\/\S+$/.test(value);
}

function checkKeys(where, value, allowed) {
  for (const key of Object.keys(value)) {
    expect(allowed.includes(key) || /^x_/i.test(key), `${where} has an unknown key: ${key}`);
  }
}

function checkDistribution() {
  checkKeys('META.json', meta, [...REQUIRED, ...OPTIONAL]);
  for (const key of REQUIRED) expect(meta[key] !== undefined, `${key} is missing`);
  for (const key of ['name', 'abstract', 'maintainer']) expect(isText(meta[key]), `${key} is no text`);
  expect(VERSION.test(meta.version), `version is no semantic version: ${meta.version}`);
  expect(meta.version === controlVersion, `version is ${meta.version}, of the control file ${controlVersion}`);
  expect(basename(directory) === `${meta.name}-${meta.version}`, `the archive's folder is ${basename(directory)}`);
  expect(LICENSES.includes(meta.license), `license is unknown: ${meta.license}`);
  expect(['stable', 'testing', 'unstable'].includes(meta.release_status ?? 'stable'), 'release_status is unknown');
  expect((meta.tags ?? []).every((tag) => isText(tag) && tag.length < 256), 'a tag is no text, or too long');
  expect(meta['meta-spec']?.version === '1.0.0', 'meta-spec has another version than 1.0.0');
}

function checkExtensions() {
  for (const [name, extension] of Object.entries(meta.provides ?? {})) {
    checkKeys(name, extension, ['file', 'version', 'abstract', 'docfile']);
    expect(extension.version === controlVersion, `${name} has version ${extension.version}`);
    for (const file of [extension.file, extension.docfile ?? extension.file]) {
      expect(isText(file) && existsSync(join(directory, file)), `${name} names a file that is not there: ${file}`);
    }
  }
}

function checkPrerequisites() {
  checkKeys('prereqs', meta.prereqs ?? {}, PHASES);
  for (const [phase, relations] of Object.entries(meta.prereqs ?? {})) {
    checkKeys(phase, relations, RELATIONS);
    for (const needed of Object.values(relations).flatMap(Object.entries)) {
      expect(VERSION.test(needed[1]), `${needed[0]} is needed in no semantic version: ${needed[1]}`);
    }
  }
}

function checkResources() {
  const { homepage, bugtracker, repository } = meta.resources ?? {};
  checkKeys('resources', meta.resources ?? {}, ['homepage', 'bugtracker', 'repository']);
  checkKeys('bugtracker', bugtracker ?? {}, ['web', 'mailto']);
  checkKeys('repository', repository ?? {}, ['url', 'web', 'type']);
  for (const url of [homepage, bugtracker?.web, repository?.url, repository?.web]) {
    expect(isUrl(url), `resources has no URL where one belongs: ${url}`);
  }
  expect(repository?.type === repository?.type?.toLowerCase(), 'the type of the repository is not in lower case');
}

checkDistribution();
checkExtensions();
checkPrerequisites();
checkResources();
for (const problem of problems) console.error(`META.json: ${problem}`);
process.exit(problems.length > 0 ? 1 : 0);
