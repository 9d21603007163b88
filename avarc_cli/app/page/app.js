// The page of `avarc app`. All that is computed is computed by the server; texts are set as text, never as HTML.
"use strict";

const by = id => document.getElementById(id);
const page = { state: null, image: null, predictions: [], maps: null, asked: {}, seed: 0 };

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function show(problem) {
  by("problem").hidden = !problem;
  by("problem").textContent = problem || "";
}

// Ask the server. A later question of the same kind ends the earlier one; so does leaving the page.
async function ask(kind, path, body) {
  page.asked[kind]?.abort();
  const aborter = page.asked[kind] = new AbortController();
  const isFile = body instanceof Blob;
  const options = { signal: aborter.signal, headers: { "X-Avarc": "1" } };
  if (body !== undefined) {
    options.method = "POST";
    options.body = isFile ? body : JSON.stringify(body);
    options.headers["Content-Type"] = isFile ? "application/octet-stream" : "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the app does not answer; is it still running?");
  }
  const failed = response.status === 503 ? "the app is busy; try again in a minute" : "the app could not do this";
  const answer = await response.json().catch(() => ({ what: failed }));
  if (!response.ok) throw new Error([answer.what, answer.why].filter(Boolean).join(": "));
  return answer;
}

// Do something while the status says so; problems are shown, an abandoned question is none.
async function during(text, work) {
  show("");
  by("status").textContent = text;
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    show(error.message);
  }
  by("status").textContent = "";
}

function fill(select, entries, chosen) {
  const before = chosen ?? select.value;
  select.replaceChildren(...entries.map(({ id, name }) => new Option(name, id)));
  if (entries.some(({ id }) => id === before)) select.value = before;
}

const modelOf = name => page.state.models.find(model => model.name === name) ?? page.state.models[0];
const predictionOf = name => page.predictions.find(found => found.model === name);

function fillClasses() {
  for (const part of ["why", "draw"]) {
    const classes = modelOf(by(`${part}-model`).value).classes;
    fill(by(`${part}-class`), classes);
    if (part === "why") fill(by("why-contrast"), classes);
  }
}

async function start() {
  page.state = await ask("state", "api/state");
  const { models, examples, shared } = page.state;
  by("model-names").textContent = models.map(model => model.name).join(" and ");
  by("whose").textContent = shared ? "All users of this app share it." : "It is yours alone, until you leave.";
  for (const part of ["why", "draw"]) fill(by(`${part}-model`), models.map(({ name }) => ({ id: name, name })));
  for (const label of document.querySelectorAll(".of-two")) label.hidden = models.length < 2;
  fillClasses();
  by("examples-part").hidden = !examples.length;
  by("examples").replaceChildren(...examples.map(({ id, label }) => {
    const button = element("button"), picture = element("img");
    picture.src = `examples/${id}`;
    picture.alt = `example: ${label}`;
    button.type = "button";
    button.append(picture);
    button.addEventListener("click", () => { preview(`examples/${id}`); choose(id, button); });
    return button;
  }));
  document.body.dataset.ready = "true";
}

function preview(source) {
  by("chosen").src = source;
  by("chosen").hidden = false;
}

function choose(image, button = null) {
  for (const other of by("examples").children) other.setAttribute("aria-pressed", String(other === button));
  page.image = image;
  return during("Classifying…", async () => {
    page.predictions = await ask("classify", "api/classify", { image });
    if (page.state.shared) page.state = await ask("state", "api/state");  // others may have added classes
    showPredictions();
    await explainPrediction();
  });
}

async function upload(file) {
  await during("Uploading…", async () => {
    check(file);
    const { id } = await ask("upload", "api/images", file);
    preview(URL.createObjectURL(file));
    await choose(id);
  });
}

function check(file) {
  const most = page.state.max_bytes;
  if (file.size > most) throw new Error(`${file.name} is too large: at most ${Math.round(most / 2 ** 20)} MB are read`);
}

function percent(fraction) {
  if (fraction > 0 && fraction < 0.0005) return "< 0.1%";
  return fraction < 0.9995 ? `${(100 * fraction).toFixed(1)}%` : "> 99.9%";
}

function showPredictions() {
  by("no-prediction").hidden = true;
  by("predictions").replaceChildren(...page.predictions.map(found => {
    const card = element("div"), stages = element("ol", "", "stages"), bars = element("div", "", "bars");
    card.append(element("h3", found.model), element("p", found.name, "answer"));
    for (const stage of found.stages) {
      const item = element("li", `${stage.tokens} tokens, ${count(stage.candidates, "class")}: `);
      item.append(...stage.kept.map(name => element("span", name, "kept")));
      const others = stage.kept_count - stage.kept.length;
      if (others) item.append(element("span", `and ${others} more kept `, "muted"));
      for (const name of stage.dropped) {
        const chip = element("span", name, "dropped");
        chip.setAttribute("aria-label", `${name}, dropped`);
        chip.setAttribute("role", "img");
        item.append(chip);
      }
      const more = stage.candidates - stage.kept_count - stage.dropped.length;
      if (more) item.append(element("span", `and ${more} more dropped`, "muted"));
      stages.append(item);
    }
    const share = found.tokens_scored / found.tokens_in_all;
    for (const { name, probability } of found.ranking.slice(0, 5)) {
      const track = element("span", "", "track"), bar = element("i");
      bar.style.width = `${100 * probability}%`;
      track.append(bar);
      track.setAttribute("aria-hidden", "true");
      bars.append(element("span", name), track, element("span", percent(probability), "number"));
    }
    const spent = `${found.tokens_scored} of ${found.tokens_in_all} tokens were scored (${percent(share)}).`;
    card.append(stages, element("p", spent, "muted"), bars);
    return card;
  }));
}

const count = (number, noun) => `${number} ${number === 1 ? noun : noun + (noun.endsWith("s") ? "es" : "s")}`;

async function explainPrediction() {
  const found = predictionOf(by("why-model").value);
  fillClasses();
  by("why-class").value = found.id;
  by("draw-class").value = found.id;
  if (found.rival === null) return;
  by("why-contrast").value = found.rival;
  await explain();
}

async function explain() {
  if (!page.image) return;
  const [model, name, contrast] = ["why-model", "why-class", "why-contrast"].map(id => by(id).value);
  if (name === contrast) throw new Error("choose two different classes to compare");
  page.maps = await ask("explain", "api/explain", { image: page.image, model, class: name, contrast });
  by("scales").max = page.maps.maps.length; // first: a value is never beyond
  by("scales").value = page.maps.maps.length;
  by("scales").disabled = page.maps.maps.length < 2;
  by("why").hidden = false;
  showMap();
}

function showMap() {
  const { maps, picture, name, contrast, ratio } = page.maps, last = Number(by("scales").value);
  const map = maps[last - 1];
  if (picture) by("why-picture").src = picture;
  by("why-map").src = map.picture;
  by("why-map").style.opacity = Number(by("opacity").value) / 100;
  by("scales-label").textContent = maps.length < 2 ? "Scales" : `Scales 1 to ${last} of ${maps.length}`;
  const sum = signed(map.sum), all = last === maps.length ? "" : ` of ${signed(ratio)}`;
  by("why-text").textContent = `${name} against ${contrast}: ${sum}${all} nats`;
}

const signed = nats => `${nats < 0 ? "−" : "+"}${Math.abs(nats).toFixed(1)}`;

async function draw() {
  const [model, name] = [by("draw-model").value, by("draw-class").value];
  const label = by("draw-class").selectedOptions[0].text;
  const drawn = await ask("draw", "api/sample", { model, class: name, count: 4, seed: page.seed++ });
  by("drawn-what").textContent = `${label}, drawn by ${model}`;
  by("drawn").replaceChildren(...drawn.map((source, number) => {
    const picture = element("img");
    picture.src = source;
    picture.alt = `${label}, drawn by the model, number ${number + 1}`;
    return picture;
  }));
}

async function addClass() {
  const name = by("name").value.trim(), files = [...by("files").files], images = [];
  by("added").textContent = "";
  if (files.length > page.state.max_images) throw new Error(`at most ${page.state.max_images} images are read`);
  for (const file of files) {
    check(file);
    images.push((await ask("images", "api/images", file)).id);
  }
  const watch = setInterval(async () => {
    const { progress } = await ask("progress", "api/progress").catch(() => ({}));
    if (progress) by("status").textContent = progress;
  }, 500);
  by("stop").hidden = false;
  try {
    page.state.models[0].classes = (await ask("add", "api/classes", { name, images })).classes;
  } finally {
    if (document.activeElement === by("stop")) by("add").querySelector("button").focus();
    by("stop").hidden = true;
    clearInterval(watch);
    page.asked.progress?.abort();
  }
  by("added").textContent = `${name} is learned from ${count(files.length, "image")}.`;
  by("add").reset();
  fillClasses();
  if (page.image) await choose(page.image);
}

// While a form's work is done, its button waits; it keeps the focus.
function onSubmit(form, text, work) {
  const button = by(form).querySelector("button");
  by(form).addEventListener("submit", async event => {
    event.preventDefault();
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    await during(text, work);
    button.ariaDisabled = "false";
  });
}

by("stop").addEventListener("click", () => {
  page.asked.add.abort();
  by("status").textContent = "";
});
by("file").addEventListener("change", event => {
  const [file] = event.target.files;
  if (file) upload(file);
  event.target.value = "";
});
by("drop").addEventListener("dragover", event => { event.preventDefault(); by("drop").classList.add("over"); });
by("drop").addEventListener("dragleave", () => by("drop").classList.remove("over"));
by("drop").addEventListener("drop", event => {
  event.preventDefault();
  by("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) upload(file);
});
by("why-model").addEventListener("change", () => page.image ? during("Explaining…", explainPrediction) : fillClasses());
for (const id of ["why-class", "why-contrast"]) by(id).addEventListener("change", () => during("Explaining…", explain));
for (const id of ["opacity", "scales"]) by(id).addEventListener("input", showMap);
by("draw-model").addEventListener("change", fillClasses);
onSubmit("draw", "Drawing…", draw);
onSubmit("add", "Learning…", addClass);
during("Loading…", start);
