// Light or dark: the system's choice until the visitor makes one. Loaded before the page is drawn,
// so that it never flashes in the wrong colours.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  if (["light", "dark"].includes(chosen())) root.dataset.theme = chosen();

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      const other = shown() === "dark" ? "light" : "dark";
      button.title = button.ariaLabel = `Switch to ${other} colours`;
    };
    button.addEventListener("click", () => {
      root.dataset.theme = shown() === "dark" ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* kept for this page only */ }
      label();
    });
    dark.addEventListener("change", label);
    label();
  });
})();
