// Before the page is painted: the colours that were chosen last time.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let now = "auto";
  const chosen = () => {
    try { return localStorage.getItem("theme") ?? "auto"; } catch { return now; }
  };
  const apply = (theme) => {
    root.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
    }
  };
  apply(chosen());
  dark.addEventListener("change", () => apply(chosen()));
  document.addEventListener("DOMContentLoaded", () => {
    apply(chosen());
    document.querySelector(".theme").addEventListener("click", (event) => {
      const theme = event.target.closest("[data-theme-choice]")?.dataset.themeChoice;
      if (!theme) return;
      try { localStorage.setItem("theme", theme); } catch { /* for this page only */ }
      apply(now = theme);
    });
  });
})();
