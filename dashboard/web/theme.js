// Before the page is painted: the colours that were chosen last time.
(() => {
  const root = document.documentElement;
  const chosen = () => {
    try { return localStorage.getItem("theme") ?? "auto"; } catch { return "auto"; }
  };
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
    }
  };
  apply(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    apply(chosen());
    document.querySelector(".theme").addEventListener("click", (event) => {
      const theme = event.target.closest("[data-theme-choice]")?.dataset.themeChoice;
      if (!theme) return;
      try { localStorage.setItem("theme", theme); } catch { /* for this page only */ }
      apply(theme);
    });
  });
})();
