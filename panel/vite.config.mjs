import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';

export default defineConfig({
  plugins: [react()],
  build: {
    target: 'es2022',
    // Nothing is inlined: the Content-Security-Policy of http/nginx.conf allows files of our own alone.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  // `npm run dev` beside a REST API: CLINISYNC_API=http://127.0.0.1:8080
  server: { proxy: { '/api': process.env['CLINISYNC_API'] ?? 'http://127.0.0.1:8080' } },
});
