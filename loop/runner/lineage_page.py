"""A lineage as one self-contained page: the picture, and beside it whatever the pointer rests on."""

from __future__ import annotations

import json
from html import escape

from loop.runner.lineage import Lineage
from loop.runner.lineage_picture import draw_lineage


def lineage_page(lineage: Lineage, title: str) -> str:
    """The whole page as text."""
    nodes = {
        n.digest: {
            "name": n.name,
            "digest": n.digest,
            "operator": n.operator,
            "parents": n.parents,
            "note": n.note,
            "ratio": n.ratio,
            "stage": n.stage,
            "death": n.death,
            "detail": n.detail,
            "promoted": n.promoted,
            "diff": n.diff,
        }
        for n in lineage.nodes
    }
    data = json.dumps({"reference": lineage.reference, "champion": lineage.champion, "nodes": nodes})
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_CSS}</style></head><body>"
        "<header><label><input id='dead' type='checkbox' checked> show the dead</label>"
        "<input id='find' type='search' placeholder='find a name, digest, operator or word'>"
        "<span><button id='less' title='smaller'>-</button><button id='more' title='larger'>+</button>"
        "<button id='fit'>fit</button></span></header>"
        f"<main><div id='map'>{draw_lineage(lineage, title)}</div>"
        "<aside id='panel'><p class='hint'>Rest the pointer on a policy to read about it; click to keep it "
        "here.</p></aside></main>"
        f"<script id='data' type='application/json'>{data.replace('<', chr(92) + 'u003c')}</script>"
        f"<script>{_SCRIPT}</script></body></html>"
    )


_CSS = """
:root{color-scheme:light dark;--ink:#24241f;--dim:#6b6b64;--line:#dcdcd6;--page:#fbfbfa;--panel:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#ececea;--dim:#a0a29e;--line:#3a3d41;--page:#191a1c;--panel:#232528}}
*{box-sizing:border-box}body{margin:0;height:100vh;display:flex;flex-direction:column;background:var(--page);
color:var(--ink);font:14px/1.5 ui-sans-serif,system-ui,'Segoe UI',Helvetica,Arial,sans-serif}
header{display:flex;gap:18px;align-items:center;padding:8px 16px;border-bottom:1px solid var(--line);flex-wrap:wrap}
header input[type=search]{flex:1;min-width:180px;max-width:420px;padding:5px 9px;border:1px solid var(--line);
border-radius:7px;background:var(--panel);color:inherit;font:inherit}
button{min-width:30px;padding:4px 9px;margin-left:4px;border:1px solid var(--line);border-radius:7px;
background:var(--panel);color:inherit;font:inherit;cursor:pointer}
main{flex:1;display:flex;min-height:0}#map{flex:1;overflow:auto;min-width:0}#map svg{display:block}
aside{width:min(440px,42vw);border-left:1px solid var(--line);overflow:auto;padding:14px 18px;background:var(--panel)}
aside h2{font-size:17px;margin:0}aside .sub,.hint{color:var(--dim);margin:2px 0 10px}
aside b{font-variant-numeric:tabular-nums}pre{font:11.5px/1.45 ui-monospace,Menlo,Consolas,monospace;overflow:auto;
border:1px solid var(--line);border-radius:8px;padding:8px 10px;margin:10px 0}
pre span{display:block;min-height:1.45em;white-space:pre}.add{background:#16a34a2b}.del{background:#dc262626}.hunk{color:var(--dim)}
a{color:inherit}.n{cursor:pointer}.n:hover circle{stroke:#2563eb;stroke-width:3}
.kept circle{stroke:#2563eb;stroke-width:3.5}.faded{opacity:.13}
@media(max-width:800px){main{flex-direction:column}aside{width:auto;max-height:45vh;border-left:0;border-top:1px solid var(--line)}}
"""
_SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent), nodes = data.nodes;
const panel = document.getElementById('panel'), map = document.getElementById('map');
const svg = map.querySelector('svg'), width = svg.width.baseVal.value, height = svg.height.baseVal.value;
const marks = [...svg.querySelectorAll('.n')];
marks.forEach(g => g.querySelector('title').remove());
let kept = null, zoom = 1;
const add = (tag, text, css) => {
  const e = document.createElement(tag); e.textContent = text; if (css) e.className = css;
  panel.append(e); return e;
};
function tell(digest) {
  const n = nodes[digest]; if (!n) return;
  panel.textContent = '';
  add('h2', n.name);
  add('p', n.digest + ', ' + n.operator, 'sub');
  if (n.ratio !== null) add('p', n.ratio.toFixed(3) + ' of ' + data.reference + ' in the ' + n.stage + ' stage');
  if (n.death) add('p', n.death + ': ' + n.detail); else if (n.promoted) add('p', 'promoted');
  if (n.note) add('p', n.note);
  const from = n.parents.filter(p => nodes[p]);
  if (from.length) {
    const p = add('p', 'from ', 'sub');
    from.forEach((d, i) => {
      const a = document.createElement('a'); a.href = '#' + d; a.textContent = nodes[d].name;
      a.onclick = e => { e.preventDefault(); keep(d, true); };
      p.append(i ? ', ' : '', a);
    });
  }
  if (n.diff.length) {
    const pre = add('pre', '');
    n.diff.forEach(line => {
      const s = document.createElement('span'); s.textContent = line;
      s.className = line[0] === '+' ? 'add' : line[0] === '-' ? 'del' : line[0] === '@' ? 'hunk' : '';
      pre.append(s);
    });
  }
}
function keep(digest, show) {
  kept = digest;
  marks.forEach(g => {
    const mine = g.dataset.digest === digest;
    g.classList.toggle('kept', mine);
    if (mine && show) g.scrollIntoView({block: 'center', inline: 'center'});
  });
  tell(digest);
}
marks.forEach(g => {
  g.onmouseenter = () => tell(g.dataset.digest);
  g.onmouseleave = () => { if (kept) tell(kept); };
  g.onclick = () => keep(g.dataset.digest, false);
});
function fade() {
  const words = document.getElementById('find').value.toLowerCase();
  const dead = document.getElementById('dead').checked;
  marks.forEach(g => {
    const n = nodes[g.dataset.digest];
    const text = [n.name, n.digest, n.operator, n.note, n.death, n.detail].join(' ').toLowerCase();
    g.classList.toggle('faded', !text.includes(words));
    g.style.display = dead || !n.death || g.querySelector('.ring') ? '' : 'none';
  });
}
document.getElementById('find').oninput = fade;
document.getElementById('dead').onchange = fade;
function scale(to) { zoom = Math.min(3, Math.max(0.15, to)); svg.setAttribute('width', width * zoom); svg.setAttribute('height', height * zoom); }
document.getElementById('more').onclick = () => scale(zoom * 1.25);
document.getElementById('less').onclick = () => scale(zoom / 1.25);
document.getElementById('fit').onclick = () => scale(Math.min(map.clientWidth / width, map.clientHeight / height));
if (data.champion && nodes[data.champion]) keep(data.champion, false);
"""
