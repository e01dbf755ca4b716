"""The page: a jinja2 template that `sda.report.build` fills."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f6f8; --card: #ffffff; --ink: #1c2129; --muted: #5a6573; --line: #dde2e8; --soft: #eef1f5;
  --accent: #2467b6; --on-accent: #ffffff; --good: #19733f; --bad: #b33a22; --negative: #c4501b;
  --c1: #2468b7; --c2: #c65a10; --c3: #1a7f46; --c4: #7f4fd0; --c5: #b83280; --c6: #0d7a8c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --card: #181c22; --ink: #e5e9ee; --muted: #9aa5b3; --line: #2d343e; --soft: #222831;
    --accent: #6fb0f5; --on-accent: #0d1117; --good: #5cc98a; --bad: #f28b75; --negative: #f0925a;
    --c1: #6fb0f6; --c2: #f0975a; --c3: #5ac48a; --c4: #b79cf6; --c5: #ee86c1; --c6: #5cc5d4;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", Arial, sans-serif; }
main, header, footer { max-width: 1280px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 8px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; margin: 0 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 15px; margin: 24px 0 8px; }
h3.first { margin-top: 0; }
p { margin: 0 0 12px; max-width: 100ch; overflow-wrap: anywhere; }
.eyebrow { color: var(--muted); font-size: 13px; margin: 0; max-width: none; }
.lead { color: var(--muted); margin-bottom: 0; }
.muted { color: var(--muted); }
.good { color: var(--good); }
.bad { color: var(--bad); }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
a { color: var(--accent); }

.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 24px; margin: 0 0 16px;
  min-width: 0; }
.hero { display: grid; grid-template-columns: minmax(280px, 5fr) 9fr; gap: 16px; margin: 24px 0 16px; }
.hero .card { margin: 0; }
.score { display: flex; flex-direction: column; justify-content: center; }
.score p { margin: 0; }
.score .value { font-size: 60px; line-height: 1.05; font-weight: 650; letter-spacing: -0.03em;
  font-variant-numeric: tabular-nums; }
.score .value small { font-size: 22px; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.score .delta { margin-top: 10px; }
.gauge { position: relative; height: 8px; border-radius: 4px; background: var(--soft); margin: 14px 0 6px; }
.gauge span { position: absolute; top: -4px; bottom: -4px; }
.gauge .range { top: 0; bottom: 0; border-radius: 4px; background: var(--accent); opacity: 0.4; min-width: 2px; }
.gauge .point { width: 4px; margin-left: -2px; border-radius: 2px; background: var(--accent); }
.gauge .other { width: 2px; margin-left: -1px; background: var(--ink); }
.ends { display: flex; justify-content: space-between; color: var(--muted); font-size: 12px; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); background: var(--card); margin: 0;
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.tiles div { border: solid var(--line); border-width: 0 1px 1px 0; margin: 0 -1px -1px 0; padding: 14px 18px; min-width: 0; }
.tiles div:last-child:nth-child(4n + 1) { grid-column: span 4; }
.tiles div:last-child:nth-child(4n + 2) { grid-column: span 3; }
.tiles div:last-child:nth-child(4n + 3) { grid-column: span 2; }
.tiles dt { color: var(--muted); font-size: 13px; }
.tiles dd { margin: 0; font-size: 19px; font-weight: 600; line-height: 1.35; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.tiles dd.words { font-size: 16px; line-height: 1.6; }
.tiles dd small { display: block; font-size: 13px; font-weight: 400; color: var(--muted); line-height: 1.4; }
.notes { border-left: 4px solid var(--c2); padding: 12px 18px; }
.notes p { margin: 4px 0; max-width: none; }

nav { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--line);
  margin-bottom: 16px; }
nav div { max-width: 1280px; margin: 0 auto; padding: 0 24px; display: flex; gap: 22px; overflow-x: auto;
  white-space: nowrap; scrollbar-width: none; }
nav a { color: var(--muted); text-decoration: none; padding: 10px 0; font-size: 14px; }
nav a:hover { color: var(--ink); box-shadow: inset 0 -2px var(--accent); }
section { scroll-margin-top: 56px; }
section > .muted:first-of-type { margin-bottom: 16px; }
section.card > p.muted:last-child { margin-bottom: 0; }

.scroll { overflow-x: auto; max-width: 100%;  /* with a shadow where there is more to see */
  background:
    linear-gradient(to right, var(--card) 40%, transparent) 0 0 / 32px 100%,
    linear-gradient(to left, var(--card) 40%, transparent) 100% 0 / 32px 100%,
    linear-gradient(to right, rgb(128 140 160 / 0.3), transparent) 0 0 / 12px 100%,
    linear-gradient(to left, rgb(128 140 160 / 0.3), transparent) 100% 0 / 12px 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 6px 12px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { color: var(--muted); font-weight: 500; font-size: 13px; white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom-color: var(--muted); }
tbody th { color: var(--ink); font-size: 14px; font-weight: 400; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: var(--soft); }
tfoot tr:first-child > * { border-top: 1px solid var(--muted); font-weight: 650; color: var(--ink); padding-top: 8px; }
tfoot tr:first-child > .good { color: var(--good); }
tfoot tr:first-child > .bad { color: var(--bad); }
tfoot tr > * { border-bottom: 0; padding-top: 4px; padding-bottom: 4px; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.stick { position: sticky; left: 0; background: var(--card); }
.name { white-space: normal; overflow-wrap: anywhere; min-width: 150px; }
.text { white-space: normal; min-width: 180px; }
.hash { word-break: break-all; min-width: 140px; }
.fit { width: auto; }
.tight th, .tight td { padding-top: 2px; padding-bottom: 2px; }
.keys td:first-child, .keys td:last-child, .fit code { white-space: nowrap; }
.keys td:nth-child(2) { min-width: 130px; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; vertical-align: -1px;
  box-shadow: inset 0 0 0 1px rgb(128 128 128 / 0.35); }
td.bar { width: 34%; min-width: 110px; vertical-align: middle; }
.track { position: relative; display: block; height: 10px; border-radius: 3px; background: var(--soft); }
.fill { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--accent); }
.tick { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--ink); }
div + .after { padding-top: 12px; }
.tag { display: inline-block; font-size: 12px; padding: 0 7px; border-radius: 9px; background: var(--soft);
  color: var(--muted); margin-left: 6px; white-space: nowrap; }

.split { display: grid; grid-template-columns: minmax(0, 6fr) minmax(0, 5fr); gap: 16px 40px; align-items: start; }
.split.even { grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 24px 28px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 14px; font-weight: 600; margin-bottom: 4px; }
figcaption small { display: block; font-weight: 400; font-size: 13px; color: var(--muted); }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--muted); margin: 0 0 8px; padding: 0;
  list-style: none; }
.example { padding: 12px 0 6px; border-top: 1px solid var(--line); }
.example p { margin: 0 0 8px; max-width: none; }
.pictures { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; }
.pictures figcaption { font-size: 12px; font-weight: 400; color: var(--muted); margin: 2px 0 0; text-align: center; }
.pictures img { display: block; width: 100%; border-radius: 4px; cursor: zoom-in; }
.pictures figure:focus { grid-column: 1 / -1; outline: none; }
.pictures figure:focus img { max-width: 1024px; margin: 0 auto; cursor: default; }
.pictures figure:focus-visible img { outline: 2px solid var(--accent); outline-offset: 2px; }

pre { background: var(--soft); border-radius: 6px; padding: 10px 14px; margin: 0 0 14px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 20px; margin: 0; font-size: 14px; }
dl.facts dt { color: var(--muted); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 13px; padding-top: 8px; padding-bottom: 40px; }
footer code { font-size: 12px; }

@media (max-width: 960px) {
  .hero, .split, .split.even { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 640px) {
  main, header, footer, nav div { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 20px; }
  h1 { font-size: 24px; }
  .card { padding: 18px 16px; }
  .score .value { font-size: 52px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles div { padding: 11px 14px; }
  .tiles div:last-child:nth-child(n) { grid-column: auto; }
  .tiles div:last-child:nth-child(odd) { grid-column: span 2; }
  .tiles dd { font-size: 17px; }
  .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .pictures figure:first-child { grid-column: 1 / -1; }
  th, td { padding-left: 8px; padding-right: 8px; }
  .name { min-width: 110px; max-width: 130px; }
  .text { min-width: 130px; }
}
@media print {
  nav { display: none; }
  body { background: #fff; }
  figure, tr, .example { break-inside: avoid; }
}
"""

PAGE = """
{%- macro plot(figure, note="") -%}
<figure>
  <figcaption>{{ figure.title }}{% if note %}<small>{{ note }}</small>{% endif %}</figcaption>
  <div class="scroll"><div role="img" aria-label="{{ figure.title }}"
    style="max-width: {{ figure.width }}px{% if figure.width > 400 %}; min-width: {{ figure.width * 9 // 10 }}px{% endif %}">
    {{ figure.svg|safe }}</div></div>
</figure>
{%- endmacro -%}
{%- macro direction(value) -%}
{% if value is not none and value|abs >= 0.05 %}{{ "good" if value > 0 else "bad" }}{% endif %}
{%- endmacro -%}
{%- macro difference(value) -%}
<td class="number {{ direction(value) }}">{{ value|signed }}</td>
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="sda {{ version }}">
<link rel="icon" href="data:,">
<title>{{ title }}: mIoU {{ score.miou|percent }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<header>
  <p class="eyebrow">{{ recipe.setting }} · {{ subject_words }}</p>
  <h1>{{ title }}</h1>
  {% if recipe.description %}<p class="lead">{{ recipe.description }}</p>{% endif %}
  <div class="hero">
    <div class="card score">
      <p class="muted">mIoU on {{ dataset_words }}</p>
      <p class="value">{{ score.miou|percent }}<small> %</small></p>
      <div class="gauge" aria-hidden="true">
        {% if interval %}
        <span class="range" style="left: {{ interval[0]|round(2) }}%; width: {{ (interval[1] - interval[0])|round(2) }}%"></span>
        {% endif %}
        <span class="point" style="left: {{ score.miou|round(2) }}%"></span>
        {% if first %}<span class="other" style="left: {{ first.score.miou|round(2) }}%"></span>{% endif %}
      </div>
      <div class="ends" aria-hidden="true"><span>0</span><span>100</span></div>
      <p class="muted">
        {% if interval %}95 % interval {{ interval[0]|percent }} to {{ interval[1]|percent }}, {% endif %}
        {% if images %}over {{ images|grouped }} images{% endif %}</p>
      {% if first %}
      <p class="delta"><strong class="{{ '' if first.within else direction(first.lead) }}">{{ first.lead|signed }} points</strong>
        against {{ first.title }} ({{ first.score.miou|percent }}{% if first.within %}, inside the interval{% endif %})</p>
      {% endif %}
    </div>
    <dl class="tiles">
      {% for tile in tiles %}
      <div><dt>{{ tile.what }}</dt><dd{% if tile.words %} class="words"{% endif %}>{{ tile.value -}}
        {% if tile.more %}<small>{{ tile.more }}</small>{% endif %}</dd></div>
      {% endfor %}
    </dl>
  </div>
  {% if notes %}
  <div class="card notes">{% for note in notes %}<p>{{ note }}</p>{% endfor %}</div>
  {% endif %}
</header>
<nav aria-label="Sections"><div>
  {% if first %}<a href="#comparison">Comparison</a>{% endif %}
  <a href="#classes">Classes</a>
  {% if confusion %}<a href="#confusion">Confusion</a>{% endif %}
  {% if best %}<a href="#images">Images</a>{% endif %}
  {% if training %}<a href="#training">Training</a>{% endif %}
  <a href="#checkpoint">Checkpoint</a>
  {% if reliability %}<a href="#calibration">Calibration</a>{% endif %}
  {% if bank %}<a href="#bank">Bank</a>{% endif %}
  <a href="#reproduce">Reproduce</a>
</div></nav>
<main>

{% if first %}
<section class="card" id="comparison">
  <h2>Comparison</h2>
  <p class="muted">Under one protocol, {{ score.protocol.name }}, on the same images and classes, in percent. The lead is
    how far this run is ahead, in points.</p>
  <div class="scroll"><table>
    <thead><tr>
      <th class="stick" scope="col">run</th>
      <th class="number" scope="col">mIoU</th>
      <th class="number" scope="col">lead</th>
      {% if any_interval %}<th class="number" scope="col">95 % interval</th>{% endif %}
      {% for words, key in columns %}<th class="number" scope="col">{{ words }}</th>{% endfor %}
      <th class="number" scope="col">labels</th>
      <th class="number" scope="col">steps</th>
      <th class="number" scope="col">seed</th>
    </tr></thead>
    <tbody>
    {% for row in compared %}
    <tr>
      <th class="stick name" scope="row">{{ row.title }}{% if loop.first %}<span class="tag">this run</span>{% endif %}</th>
      <td class="number"><strong>{{ row.score.miou|percent }}</strong></td>
      {% if loop.first %}<td class="number">–</td>{% else %}
      <td class="number {{ '' if row.within else direction(row.lead) }}">{{ row.lead|signed }}</td>{% endif %}
      {% if any_interval %}
      <td class="number">
        {%- with range = row.score.get("interval") %}{% if range %}{{ range[0]|percent }} to {{ range[1]|percent }}
        {%- else %}–{% endif %}{% endwith -%}
      </td>
      {% endif %}
      {% for words, key in columns %}<td class="number">{{ row.score.get(key)|percent }}</td>{% endfor %}
      <td class="number">{{ row.labels }}</td>
      <td class="number">{{ row.steps|grouped }}</td>
      <td class="number">{{ row.seed }}</td>
    </tr>
    {% endfor %}
    </tbody>
  </table></div>
  {% if differing %}
  <h3>By what they differ</h3>
  <div class="scroll"><table class="fit">
    <thead><tr><th class="stick" scope="col">recipe</th>
      {% for row in compared %}<th scope="col" title="{{ row.title }}">{{ row.short }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for key, found in differing %}
    <tr><th class="stick" scope="row"><code>{{ key }}</code></th>
      {% for value in found %}<td><code>{{ value }}</code></td>{% endfor %}</tr>
    {% endfor %}
    </tbody>
  </table></div>
  {% else %}
  <p class="muted">Their recipes are the same.</p>
  {% endif %}
</section>
{% endif %}

<section class="card" id="classes">
  <h2>Classes</h2>
  <p class="muted">IoU in percent.
    {% if first %}A lead is how far this run is ahead; the upright line in a bar is {{ first.title }}.{% endif %}</p>
  <div class="scroll"><table>
    <thead><tr>
      <th class="stick" scope="col">class</th>
      <th class="number" scope="col">IoU</th>
      <th scope="col">0 to 100</th>
      {% for row in baselines %}
      <th class="number" scope="col" title="{{ row.title }}">{{ row.short }}</th>
      <th class="number" scope="col">lead</th>
      {% endfor %}
      {% if edges %}<th class="number" scope="col">Boundary IoU</th>{% endif %}
      {% if confusion %}<th class="number" scope="col">% of pixels</th>{% endif %}
    </tr></thead>
    <tbody>
    {% for row in classes %}
    <tr>
      <th class="stick" scope="row">
        {%- if row.color %}<span class="swatch" style="background: {{ row.color }}"></span>{% endif %}{{ row.name }}</th>
      <td class="number"><strong>{{ row.iou|percent }}</strong></td>
      <td class="bar"><span class="track"><span class="fill" style="width: {{ (row.iou or 0)|round(2) }}%"></span>
        {%- if first and row.baselines[0] is not none %}
        <span class="tick" style="left: {{ row.baselines[0]|round(2) }}%"></span>{% endif %}</span></td>
      {% for value in row.baselines %}
      <td class="number">{{ value|percent }}</td>
      {{ difference(row.leads[loop.index0]) }}
      {% endfor %}
      {% if edges %}<td class="number">{{ row.boundary|percent }}</td>{% endif %}
      {% if confusion %}<td class="number muted">{{ row.share|percent }}</td>{% endif %}
    </tr>
    {% endfor %}
    </tbody>
    <tfoot>
    {% for words, key in means %}
    <tr>
      <th class="stick" scope="row">{{ words }}</th>
      <td class="number">{{ score[key]|percent }}</td>
      <td></td>
      {% for row in baselines %}
      <td class="number">{{ row.score.get(key)|percent }}</td>
      {{ difference(score[key] - row.score[key] if row.score.get(key) is not none else none) }}
      {% endfor %}
      {% if edges %}<td class="number">{{ score.boundary_miou|percent if loop.first else "" }}</td>{% endif %}
      {% if confusion %}<td></td>{% endif %}
    </tr>
    {% endfor %}
    </tfoot>
  </table></div>
</section>

{% if confusion %}
<section class="card" id="confusion">
  <h2>Confusion</h2>
  <p class="muted">Each row is a class of the labels: how many percent of its pixels are called what. The diagonal is right.</p>
  <div class="split">
    {{ plot(confusion) }}
    <div>
      <h3 class="first">The mistakes that cost most pixels</h3>
      {% if confusions %}
      <div class="scroll"><table>
        <thead><tr><th scope="col">is</th><th scope="col">is called</th>
          <th class="number" scope="col">% of its pixels</th><th class="number" scope="col">% of all</th></tr></thead>
        <tbody>
        {% for row in confusions %}
        <tr><td>{{ row.name }}</td><td>{{ row.called }}</td>
          <td class="number">{{ row.own|percent }}</td><td class="number">{{ row.all|percent }}</td></tr>
        {% endfor %}
        </tbody>
      </table></div>
      {% else %}
      <p>There are none.</p>
      {% endif %}
    </div>
  </div>
</section>
{% endif %}

{% if best %}
<section class="card" id="images">
  <h2>Best and worst images</h2>
  <p class="muted">By the mIoU of each image alone, over the classes in its label or prediction. Mistakes are red, ignored pixels
    grey. Press a picture to enlarge it. {{ better }}</p>
  <ul class="legend">
    {% for name, color in legend %}
    <li><span class="swatch" style="background: {{ color }}"></span>{{ name }}</li>
    {% endfor %}
  </ul>
  {% for words, examples in (("Best", best), ("Worst", worst)) if examples %}
  <h3>{{ words }}</h3>
  {% for example in examples %}
  <div class="example">
    <p><strong>{{ example.miou|percent }}</strong> <code>{{ example.key }}</code></p>
    <div class="pictures">
      {% for what, source in example.sources.items() %}
      <figure tabindex="0"><img src="{{ source }}" alt="{{ what }} of {{ example.key }}">
        <figcaption>{{ what }}</figcaption></figure>
      {% endfor %}
    </div>
  </div>
  {% endfor %}
  {% endfor %}
</section>
{% endif %}

{% if training %}
<section class="card" id="training">
  <h2>Training</h2>
  <p class="muted">{{ training_words }}</p>
  <div class="panels">{% for figure, note in training %}{{ plot(figure, note) }}{% endfor %}</div>
</section>
{% endif %}

<section class="card" id="checkpoint">
  <h2>Choosing a checkpoint</h2>
  {% if choices %}
  <p class="muted">Which of the {{ evaluated or "" }} evaluated steps a criterion would have taken, and how far that is behind the
    oracle, which reads the validation labels. All that this page reports is of {{ reported }}.</p>
  <div class="{{ 'split' if criteria else '' }}">
    <div class="scroll"><table>
      <thead><tr><th scope="col">criterion</th><th class="number" scope="col">step</th><th class="number" scope="col">mIoU</th>
        <th class="number" scope="col">to oracle</th><th scope="col">labels it reads</th></tr></thead>
      <tbody>
      {% for row in choices %}
      <tr><td class="text">{{ row.words }}{% if row.file %}<span class="tag">{{ row.file }}</span>{% endif %}</td>
        <td class="number">{{ row.step|grouped }}</td><td class="number"><strong>{{ row.miou|percent }}</strong></td>
        {{ difference(-row.behind) }}<td class="muted">{{ row.labels }}</td></tr>
      {% endfor %}
      </tbody>
    </table></div>
    {% if criteria %}{{ plot(criteria) }}{% endif %}
  </div>
  {% endif %}
  {% if choice_note %}<p class="muted after">{{ choice_note }}</p>{% endif %}
</section>

{% if reliability %}
<section class="card" id="calibration">
  <h2>Calibration</h2>
  <p class="muted">Whether the network is right as often as it is sure.</p>
  <div class="split even">
    {{ plot(reliability) }}
    <div>
      <p><strong>Expected calibration error {{ score.ece|percent }} %.</strong> {{ calibration_words }}</p>
      <div class="scroll"><table class="tight">
        <thead><tr><th class="number" scope="col">% sure</th><th class="number" scope="col">% right</th>
          <th class="number" scope="col">difference</th><th class="number" scope="col">% of pixels</th></tr></thead>
        <tbody>
        {% for row in score.reliability %}
        <tr><td class="number">{{ row.confidence|percent }}</td><td class="number">{{ row.accuracy|percent }}</td>
          <td class="number">{{ (row.accuracy - row.confidence)|signed }}</td>
          <td class="number">{{ (100 * row.share)|percent }}</td></tr>
        {% endfor %}
        </tbody>
      </table></div>
    </div>
  </div>
</section>
{% endif %}

{% if bank %}
<section class="card" id="bank">
  <h2>Memory bank</h2>
  <p class="muted">{{ bank.words }}</p>
  <div class="split even">
    {{ plot(bank.fill, bank.fill_note) }}
    {% if bank.similarity %}{{ plot(bank.similarity, bank.similarity_note) }}{% endif %}
  </div>
  {% if bank.rows %}
  <h3>When its entries came</h3>
  <div class="scroll"><table class="tight">
    <thead><tr><th class="stick" scope="col">class</th>
      <th class="number" scope="col">entries</th>
      <th class="number" scope="col">confidence, %</th>
      <th class="number" scope="col">mean age, steps</th>
      <th class="number" scope="col">oldest</th>
      <th scope="col">most alike</th>
      <th class="number" scope="col">cosine</th></tr></thead>
    <tbody>
    {% for row in bank.rows %}
    <tr><th class="stick" scope="row">{{ row.class }}</th><td class="number">{{ row.entries|grouped }}</td>
      {% if row.entries %}
      <td class="number">{{ (100 * row.confidence)|percent }}</td>
      <td class="number">{{ row.age|round|int|grouped }}</td><td class="number">{{ row.oldest|grouped }}</td>
      {% else %}
      <td class="number">–</td><td class="number">–</td><td class="number">–</td>
      {% endif %}
      <td>{{ row.nearest or "–" }}</td>
      <td class="number">{{ "–" if row.between is none else "%.2f"|format(row.between) }}</td></tr>
    {% endfor %}
    </tbody>
  </table></div>
  {% endif %}
</section>
{% endif %}

<section class="card" id="reproduce">
  <h2>How to do it again</h2>
  <p class="muted">{{ images_words }}. Protocol {{ score.protocol.name }}: {{ protocol_words }}.</p>
  {% for words, command in commands %}
  <h3>{{ words }}</h3>
  <pre>{{ command }}</pre>
  {% endfor %}
  <div class="split">
    <div>
      <h3>The recipe, where it is not the default</h3>
      <div class="scroll"><table class="keys">
        <thead><tr><th scope="col">key</th><th scope="col">value</th><th scope="col">default</th></tr></thead>
        <tbody>
        {% for key, value, default in chosen %}
        <tr><td><code>{{ key }}</code></td><td><code>{{ value }}</code></td>
          <td class="muted">{% if default %}<code>{{ default }}</code>{% endif %}</td></tr>
        {% endfor %}
        </tbody>
      </table></div>
    </div>
    <div>
      <h3>Software and device</h3>
      <dl class="facts">{% for key, value in versions %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
      {% if splits %}
      <h3>Images</h3>
      <div class="scroll"><table>
        <thead><tr><th scope="col">stream</th><th class="number" scope="col">images</th>
          <th scope="col">SHA-256 of their list</th></tr></thead>
        <tbody>
        {% for stream, split in splits.items() %}
        <tr><td>{{ stream|replace("_", " ") }}</td><td class="number">{{ split.images|grouped }}</td>
          <td class="hash"><code>{{ split.sha256 }}</code></td></tr>
        {% endfor %}
        </tbody>
      </table></div>
      {% endif %}
      {% if left_out %}
      <h3>What was said of the data</h3>
      {% for note in left_out %}<p class="muted">{{ note }}</p>{% endfor %}
      {% endif %}
    </div>
  </div>
</section>
</main>
<footer>Made by <code>{{ made_by }}</code>, sda {{ version }}. Its figures are beside it, in <code>figures/</code>.</footer>
</body>
</html>
"""
