"""How the pages for people look: light and dark, on a phone, on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #596373; --line: #d9dee5; --paper: #fff; --panel: #f5f7f9;
  --bar: #9fb6cc; --chosen: #2f6f9f; --wrong: #8c2f5b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #9aa7b6; --line: #343e4a; --paper: #14191f;
  --panel: #1c232b; --bar: #46607a; --chosen: #6fb1e0; --wrong: #e58ab5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
.soft { color: var(--soft); font-size: .85rem; } .wrong { color: var(--wrong); }
:focus-visible { outline: 2px solid var(--chosen); outline-offset: 2px; }
"""
