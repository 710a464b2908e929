// The bundle is served by the API itself under /explorer/, so that no request leaves its origin.
import { defineConfig } from "vite";

export default defineConfig({
  base: "/explorer/",
  build: {
    outDir: "../static/explorer",
    emptyOutDir: true,
    target: "es2022",
    chunkSizeWarningLimit: 8000,
    modulePreload: { polyfill: false }, // the polyfill is an inline script
    rolldownOptions: {
      // React libraries mark modules for servers; a bundle for browsers has no use for the mark.
      onwarn: (warning, warn) => warning.code === "MODULE_LEVEL_DIRECTIVE" || warn(warning),
    },
  },
});
