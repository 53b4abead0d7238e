// Everything shown comes from /state, which is polled, so a restart of the server or the page loses nothing.
import { snapshot, startCamera, stopCamera, tellCamera } from "./camera.js";
import { $, attempt, complain, make, reconcile } from "./elements.js";
import { Refused, ask, post } from "./server.js";
import { here, total } from "./state.js";

const SIZES = [2048, 1280, 800];

// --- the server's state ---------------------------------------------------------------------------------------------

let timer;
async function refresh() {
  clearTimeout(timer);
  try {
    here.state = await ask("state");
    $("away").hidden = here.state.up;
    $("fault").hidden = !here.state.faults.length;
    $("fault").textContent = `A part of this page failed and is restarting: ${here.state.faults.join(", ")}. See the terminal of nst web.`;
  } catch (error) {
    $("away").hidden = false;
    if (error.status) complain(error.message);
  }
  show();
  const busy = here.state.jobs.some(pending) || here.state.training?.styles.some(pending) || !here.state.up;
  timer = setTimeout(refresh, busy ? 500 : 2500);
}

const pending = (entry) => !["done", "failed"].includes(entry.status);

// --- the image ---------------------------------------------------------------------------------------------------

function fits(file) {
  const maximum = here.state.limits?.bytes;
  if (maximum && file.size > maximum) throw new Refused(`The file is over the limit of ${maximum / 1e6} MB. Choose a smaller one.`);
}

async function take(file) {
  fits(file);
  leaveCamera();
  setContent(await post("contents", file));
  Object.assign(here, { file, shown: null });
  show();
}

function setContent(content) {
  here.content = content;
  $("before").src = `contents/${content.name}`;
  offerSizes();
}

function offerSizes() {
  const { width, height } = here.content;
  const longer = Math.max(width, height);
  const smaller = SIZES.filter((side) => side < longer);
  $("size").replaceChildren(
    new Option(`${width} × ${height}`, ""),
    ...smaller.map((side) => new Option(`${Math.round((width * side) / longer)} × ${Math.round((height * side) / longer)}`, side)),
  );
}

async function order() {
  const wanted = () =>
    post("jobs", JSON.stringify({
      content: here.content.name,
      style: Object.fromEntries(here.weights),
      max_side: Number($("size").value) || null,
    }));
  let job;
  try {
    job = await wanted();
  } catch (error) {
    if (error.status !== 404 || !here.file) throw error;
    here.content = await post("contents", here.file); // the page's server has restarted without it
    job = await wanted();
  }
  here.shown = job.name;
  await refresh();
}

// --- what is shown -------------------------------------------------------------------------------------------------

function show() {
  showStyles();
  showFrame();
  showQueue();
  showTraining();
  const { limits } = here.state;
  if (limits) $("limits").textContent = `Up to ${limits.bytes / 1e6} MB and ${Math.round(limits.pixels / 1e6)} megapixels.`;
  $("stylize").disabled = !(here.content && total() > 0) || Boolean(here.camera);
  $("stylize").hidden = Boolean(here.camera);
}

function showStyles() {
  const { styles } = here.state;
  const names = new Set(styles.map((style) => style.name));
  for (const name of here.weights.keys()) if (!names.has(name)) here.weights.delete(name);
  if (!here.weights.size && styles.length) here.weights.set(styles[0].name, 1);
  const model = styles.find((style) => here.weights.has(style.name))?.model;
  $("none").hidden = styles.length > 0 || !here.state.up;
  $("interpolating").hidden = !styles.some((style) => style.interpolates);
  reconcile($("styles"), styles, (style) => style.name + style.thumbnail, (style) => {
    const button = make("button", { type: "button", title: style.name });
    button.dataset.style = style.name;
    button.append(style.thumbnail ? make("img", { src: style.thumbnail, alt: "" }) : make("span", { className: "blank" }));
    button.append(make("span", { textContent: words(style.name) }));
    button.addEventListener("click", () => pick(style));
    return button;
  });
  for (const button of $("styles").children) {
    const style = styles.find((offered) => offered.name === button.dataset.style);
    button.setAttribute("aria-pressed", here.weights.has(style.name));
    button.classList.toggle("apart", $("interpolate").checked && style.model !== model);
  }
  const chosen = $("interpolate").checked ? [...here.weights.keys()] : [];
  reconcile($("weights"), chosen.length > 1 ? chosen : [], (name) => name, (name) => {
    const label = make("label", { className: "slider" });
    const output = make("output", { textContent: `${Math.round(100 * here.weights.get(name))} %` });
    const slider = make("input", { type: "range", min: 0, max: 100, value: 100 * here.weights.get(name) });
    slider.setAttribute("aria-label", `Weight of ${name}`);
    slider.addEventListener("input", () => {
      here.weights.set(name, slider.value / 100);
      output.textContent = `${slider.value} %`;
      show();
      tellCamera();
    });
    label.append(words(name), " ", output, slider);
    return label;
  });
}

function pick(style) {
  const model = here.state.styles.find((offered) => here.weights.has(offered.name))?.model;
  if (!$("interpolate").checked || style.model !== model) here.weights.clear(); // only styles of one network can be interpolated
  if (here.weights.has(style.name) && here.weights.size > 1) here.weights.delete(style.name);
  else here.weights.set(style.name, here.weights.size ? 0.5 : 1);
  show();
  tellCamera();
}

function showFrame() {
  const job = here.state.jobs.find((job) => job.name === here.shown);
  const done = job?.status === "done";
  const live = Boolean(here.camera);
  $("empty").hidden = Boolean(here.content) || live;
  $("frame").hidden = !here.content || live;
  $("live").hidden = !live;
  $("actions").hidden = !here.content && !live;
  $("another").hidden = $("camera2").hidden = live;
  $("shoot").hidden = $("stop").hidden = !live;
  $("sizing").hidden = !here.content || live;
  $("download").hidden = !done || live;
  $("busy").hidden = !job || !pending(job);
  if (job && pending(job)) {
    $("progress").textContent = progressOf(job);
    if (job.total) Object.assign($("bar"), { max: job.total, value: job.done });
    else $("bar").removeAttribute("value");
  }
  if (job?.status === "failed") complain(job.error);
  if (done) {
    const look = lookOf(job);
    if ($("after").dataset.look !== look) {
      $("after").dataset.look = look;
      $("after").src = look;
    }
    $("download").href = look.replace("/shown", "/whole");
  }
  for (const id of ["after", "compare", "divider"]) $(id).hidden = !done || !$("after").dataset.ready;
  if (!done) delete $("after").dataset.look, delete $("after").dataset.ready;
}

const lookOf = (job) =>
  `jobs/${job.name}/shown?strength=${$("strength").value / 100}&preserve=${Number($("preserve").checked)}`;

function progressOf(job) {
  if (!here.state.up) return "Waiting for the server";
  if (job.status === "waiting" && job.error) return `Waiting: ${job.error}`;
  if (job.status === "waiting") return job.before ? `Waiting: ${job.before} ahead of yours` : "Waiting";
  return job.total ? `Stylizing: ${job.done} of ${job.total} tiles` : "Stylizing";
}

function cut() {
  const value = Number($("compare").value);
  $("frame").style.setProperty("--cut", value);
  const inside = $("after").getBoundingClientRect();
  const around = $("frame").getBoundingClientRect();
  $("frame").style.setProperty("--wide", `${inside.width}px`);
  $("frame").style.setProperty("--at", `${inside.left - around.left + (inside.width * value) / 100}px`);
}

const words = (name) => name.replaceAll(/[-_]/g, " ");

const nameOf = (weights) =>
  Object.entries(weights).filter(([, weight]) => weight > 0).map(([name]) => words(name)).join(" + ");

function showQueue() {
  $("jobs").hidden = !here.state.jobs.length;
  reconcile($("queue"), here.state.jobs, (job) => job.name + job.status, (job) => {
    const item = make("li");
    const open = make("button", { type: "button", className: "show" });
    open.setAttribute("aria-label", `Show the image in ${nameOf(job.style)}`);
    open.addEventListener("click", () => reopen(job));
    if (job.status === "done") open.append(make("img", { src: `jobs/${job.name}/shown`, alt: "", loading: "lazy" }));
    const gone = make("button", { type: "button", className: "gone", textContent: "✕" });
    gone.setAttribute("aria-label", `Remove the image in ${nameOf(job.style)}`);
    gone.addEventListener("click", () => attempt(async () => {
      await ask(`jobs/${job.name}`, { method: "DELETE" });
      if (here.shown === job.name) here.shown = null;
      await refresh();
    }));
    const line = make("div", { className: "row" });
    line.append(make("span", { textContent: nameOf(job.style), title: nameOf(job.style) }), gone);
    item.append(open, line);
    item.dataset.job = job.name;
    return item;
  });
  for (const item of $("queue").children) {
    const job = here.state.jobs.find((known) => known.name === item.dataset.job);
    const open = item.querySelector(".show");
    open.setAttribute("aria-current", job.name === here.shown);
    if (job.status !== "done") open.textContent = job.status === "failed" ? "Failed" : progressOf(job);
  }
}

/** Show a job in the frame again, with its content image. */
function reopen(job) {
  leaveCamera();
  if (here.content?.name !== job.content.name) {
    setContent(job.content);
    here.file = null;
  }
  here.shown = job.name;
  show();
  $("stage").scrollIntoView({ block: "nearest" });
}

// --- my own style --------------------------------------------------------------------------------------------------

function showTraining() {
  const { training } = here.state;
  $("off").hidden = Boolean(training);
  $("new").hidden = !training;
  if (!training) {
    $("off").textContent = "Training is off. Start nst web with --gallery models/x.pth --repository model_repository.";
    $("trainings").replaceChildren();
    return;
  }
  $("learn").disabled = !here.styleImage || training.styles.some(pending);
  reconcile($("trainings"), training.styles, (style) => style.name + style.status + style.error, (style) => {
    const item = make("li");
    item.dataset.training = style.name;
    item.append(make("span", { className: "status" }));
    if (pending(style)) item.append(make("progress"));
    const line = make("div", { className: "row" });
    if (style.status === "failed") line.append(doing("Try again", () => post(`styles/${style.name}`)));
    if (!["training", "publishing"].includes(style.status)) {
      const words = { done: "Dismiss", failed: "Remove", waiting: "Cancel" };
      line.append(doing(words[style.status], () => ask(`styles/${style.name}`, { method: "DELETE" })));
    }
    item.append(line);
    return item;
  });
  for (const item of $("trainings").children) {
    const style = training.styles.find((known) => known.name === item.dataset.training);
    item.querySelector(".status").textContent = `${style.name}: ${wordsOf(style)}`;
    const bar = item.querySelector("progress");
    if (bar && style.status === "training" && style.total) Object.assign(bar, { max: style.total, value: style.done });
  }
}

function wordsOf(training) {
  if (training.status === "waiting") return training.before ? `waiting, ${training.before} ahead of it` : "starting";
  if (training.status === "training") {
    if (!training.total) return "training is starting";
    return `training, ${training.done} of ${training.total} ${training.unit}${training.left ? `, ${training.left} left` : ""}`;
  }
  if (training.status === "publishing") return "trained, loading on the server";
  return training.status === "done" ? "done, choose it above" : `failed: ${training.error}`;
}

function doing(words, work) {
  const button = make("button", { type: "button", textContent: words });
  button.addEventListener("click", () => attempt(async () => { await work(); await refresh(); }, "new-error"));
  return button;
}

function leaveCamera() {
  if (!here.camera) return;
  stopCamera();
  show();
}

let pause;
function lookChanged() {
  $("strength-value").textContent = `${$("strength").value} %`;
  tellCamera();
  clearTimeout(pause);
  pause = setTimeout(show, 150);
}

// --- the user's actions --------------------------------------------------------------------------------------------

for (const id of ["choose", "another"]) $(id).addEventListener("click", () => $("file").click());
for (const id of ["camera", "camera2"]) {
  $(id).addEventListener("click", () => attempt(async () => {
    await startCamera();
    show();
    $("stop").focus();
  }));
}
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) attempt(() => take(file));
});
$("stop").addEventListener("click", leaveCamera);
$("shoot").addEventListener("click", () => attempt(async () => take(await snapshot())));
$("controls").addEventListener("submit", (event) => { event.preventDefault(); attempt(order); });
$("strength").addEventListener("input", lookChanged);
$("preserve").addEventListener("change", lookChanged);
$("interpolate").addEventListener("change", () => {
  const [first] = here.weights.keys();
  if (!$("interpolate").checked && first) here.weights = new Map([[first, 1]]);
  show();
  tellCamera();
});
$("compare").addEventListener("input", cut);
$("after").addEventListener("load", () => {
  $("after").dataset.ready = true;
  show();
  cut();
});
$("after").addEventListener("error", refresh);
addEventListener("resize", cut);

addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) attempt(() => take(file));
});
addEventListener("dragover", (event) => { event.preventDefault(); $("stage").classList.add("dropping"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("stage").classList.remove("dropping"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  attempt(() => {
    if (!file) throw new Refused("That was not a file. Drop an image file.");
    return take(file);
  });
});

$("pick").addEventListener("click", () => $("style-image").click());
$("style-image").addEventListener("change", () => {
  const [file] = $("style-image").files;
  if (!file) return;
  here.styleImage = file;
  $("picked").src = URL.createObjectURL(file);
  $("picked").hidden = false;
  if (!$("name").value) $("name").value = file.name.replace(/\.[^.]*$/, "").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
  show();
});
$("new").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    fits(here.styleImage);
    await post(`styles?name=${encodeURIComponent($("name").value)}`, here.styleImage);
    here.styleImage = null;
    $("style-image").value = $("name").value = "";
    $("picked").hidden = true;
    await refresh();
  }, "new-error");
});

refresh();
