"""The page's style sheet: dark where the reader's system is."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #666b73; --grid: #e3e5e9;
  --bad: #c0262d; --box: #f6f7f9; --c0: #2563c9; --c1: #d1570b; --c2: #12823c; --c3: #8a3ab9;
  --c4: #b3261e; --c5: #0f7c8a;  --c6: #7a6a00; --c7: #5b6470; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --text: #e6e8eb; --soft: #9aa1ab;
  --grid: #2e3238; --bad: #ff7b7b; --box: #1d2024; --c0: #6ea4ff; --c1: #ff9a54; --c2: #5fd08a; --c3: #cf93f5;
  --c4: #ff8a80;  --c5: #5ccbd9; --c6: #d9c54a; --c7: #a7b0bc; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1220px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } p { margin: .3rem 0 .8rem; }
.facts { color: var(--soft); font-size: .87rem; } .bad { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .7rem .8rem; background: var(--box); border-radius: 6px; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figure > svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .unit { fill: var(--text); }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; } .legend line { stroke-width: 2.5; }
.dashed { stroke-dasharray: 4 3; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
circle { fill: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; color: var(--soft);
  margin-top: .3rem; }
.legend svg { width: 22px; height: 8px; margin-right: .35rem; vertical-align: middle; }
.scroll { overflow-x: auto; margin: .7rem 0; } .tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem .22rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th:first-child { text-align: left; font-weight: 500; } thead th { color: var(--soft); font-weight: 500; }
td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); }
"""
