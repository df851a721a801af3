// Tell RequireJS where the vendored widget modules lie. Runs between require.js and embed-amd.js.
(function () {
  const here = document.currentScript.src.replace(/[^/]*$/, "vendor/");
  const manager = here + "html-manager";
  window.__jupyter_widgets_assets_path__ = manager + "/";
  requirejs.config({
    paths: {
      anywidget: here + "anywidget",
      "@jupyter-widgets": manager,
      "@jupyter-widgets/html-manager/dist": manager,
    },
  });
})();
