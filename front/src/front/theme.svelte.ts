// Light, dark, or the system's theme; kept in this browser.

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];
const KEY = "clip-retrieval theme";

function read(): Theme {
  try {
    const kept = localStorage.getItem(KEY);
    return THEMES.find((name) => name === kept) ?? "system";
  } catch {
    return "system";
  }
}

function show(theme: Theme): void {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

class Choice {
  theme = $state<Theme>(read());
  constructor() {
    show(this.theme);
  }
  next(): void {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]!;
    show(this.theme);
    try {
      localStorage.setItem(KEY, this.theme);
    } catch {
      // then only for this visit
    }
  }
}
export const choice = new Choice();
