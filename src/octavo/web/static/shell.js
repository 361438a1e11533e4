// The console's two small switches. The theme is this browser's own choice, kept in a cookie.
const octavoThemes = ["auto", "light", "dark"];

function octavoTheme(button) {
  const next = octavoThemes[(octavoThemes.indexOf(button.dataset.theme) + 1) % octavoThemes.length];
  button.dataset.theme = next;
  button.title = "Theme: " + next;
  document.cookie = "octavo_theme=" + next + ";path=/;max-age=31536000;samesite=lax";
  Quasar.Dark.set(next === "auto" ? "auto" : next === "dark");
}

function octavoNavigation() {
  document.body.classList.toggle("o-side-open");
}

document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.o-account[open]")) {
    if (!menu.contains(event.target)) menu.removeAttribute("open");
  }
  if (!event.target.closest(".o-side, .o-menu")) document.body.classList.remove("o-side-open");
});
