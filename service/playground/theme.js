// A classic script in <head>, so that a remembered theme is set before the first paint.
{
  let remembered = null;
  try {
    remembered = localStorage.getItem("llm-api.theme");
  } catch {
    // Storage may be forbidden; the system's theme is then used.
  }
  if (remembered === "light" || remembered === "dark") document.documentElement.dataset.theme = remembered;
}
