// The page at /. It talks to the API of the same server, and keeps nothing but the key.

const byId = (id) => document.getElementById(id);
const history = []; // {id, title}
let user = null;
let models = {}; // by variant, as /v1/model describes them
let newest = 0; // number of the newest request for recommendations; answers to older ones are dropped

// --- talking to the server

class Failure extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function call(path, body, signal) {
  const headers = { Accept: "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers["X-API-Key"] = key;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer.", "gone");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const told = answer.error ?? { code: "error", message: `The server says ${response.status}.` };
  throw new Failure(told.message, told.code);
}

function show(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error ? error.message : "";
  if (error?.code !== "unauthorized" && error?.code !== "forbidden") return;
  byId("key-form").hidden = false;
  byId("key").focus();
}

// --- elements

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const named = (item) => item.title || item.id;

function label(item) {
  if (!item.title) return [item.id];
  return [`${item.title} `, make("span", { className: "id" }, item.id)];
}

function itemRow(item, rank, best, note) {
  const button = make("button", { type: "button", className: "plain" }, ...label(item));
  button.setAttribute("aria-label", `Neighbours of ${named(item)}`);
  button.addEventListener("click", () => neighbours(item));
  const share = best > 0 && item.score > 0 ? item.score / best : null;
  const meter = share === null ? null : make("meter", { value: share });
  meter?.setAttribute("aria-hidden", "true");
  const reasons = (item.reasons ?? []).map((reason) => reason.text).join(" · ");
  return make(
    "li",
    {},
    make("span", { className: "rank" }, String(rank)),
    button,
    make("span", { className: "score" }, item.score === null ? "–" : item.score.toFixed(3)),
    meter,
    reasons ? make("span", { className: "reasons" }, reasons) : null,
    note ? make("span", { className: "note" }, note) : null,
  );
}

function itemList(items, noteOf = () => null) {
  const best = Math.max(0, ...items.map((item) => item.score));
  const list = make("ol", { className: "items" });
  list.append(...items.map((item, n) => itemRow(item, n + 1, best, noteOf(item))));
  return list;
}

// --- a field that searches while one types; arrow keys, Enter and Escape work in it

function searchField(input, list, search, choose) {
  let timer = 0;
  let controller = new AbortController();
  let found = [];
  let active = -1;

  function close() {
    clearTimeout(timer);
    controller.abort();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(place) {
    active = place;
    [...list.children].forEach((option, n) => option.setAttribute("aria-selected", n === place));
    const option = list.children[place];
    if (!option) return;
    input.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  }

  function take(place) {
    const entry = found[place];
    close();
    if (entry) choose(entry);
  }

  function offer(entries) {
    found = entries;
    list.replaceChildren(
      ...entries.map((entry, n) => {
        const option = make("li", { id: `${list.id}-${n}`, role: "option" }, ...label(entry));
        option.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus
        option.addEventListener("click", () => take(n));
        return option;
      }),
    );
    if (!entries.length) list.append(make("li", { className: "hint" }, "Nothing found."));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark(entries.length ? 0 : -1);
  }

  async function look() {
    controller.abort();
    controller = new AbortController();
    try {
      offer(await search(input.value.trim(), controller.signal));
      show(null);
    } catch (error) {
      if (error.name !== "AbortError") {
        close();
        show(error);
      }
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, 150);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const open = !list.hidden && found.length > 0;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (open) mark((active + step + found.length) % found.length);
      else look();
    } else if (event.key === "Enter" && open) {
      event.preventDefault();
      take(active);
    } else if (event.key === "Escape") {
      close();
    }
  });
}

const query = (path, text) => `${path}?${new URLSearchParams({ query: text, limit: "20" })}`;

// --- whom to recommend to

function drawHistory() {
  const rows = history.map((item, place) => {
    const button = make("button", { type: "button" }, "✕");
    button.setAttribute("aria-label", `Remove ${named(item)}`);
    button.addEventListener("click", () => {
      history.splice(place, 1);
      drawHistory();
      const buttons = byId("history").querySelectorAll("button");
      (buttons[Math.min(place, buttons.length - 1)] ?? byId("item")).focus();
      recommend();
    });
    return make("li", {}, make("span", {}, ...label(item)), button);
  });
  byId("history").replaceChildren(...rows);
  byId("history-empty").hidden = history.length > 0;
}

const forUser = () => document.querySelector("input[name=who]:checked").value === "user";

// --- recommendations

async function recommend() {
  const number = ++newest;
  const asked = forUser() ? user !== null : history.length > 0;
  show(null);
  if (!asked) {
    byId("results").replaceChildren();
    byId("status").textContent = forUser() ? "Choose a user." : "Add an item.";
    return;
  }
  const body = {
    ...(forUser() ? { user } : { history: history.map((item) => item.id) }),
    k: Number(byId("k").value),
    exclude_seen: byId("exclude-seen").checked,
    explain: byId("explain").checked,
    fallback: byId("fallback").checked ? "popular" : "none",
  };
  byId("status").textContent = "Asking…";
  const began = performance.now();
  try {
    const variants = Object.keys(models).length > 1 ? Object.keys(models) : ["primary"];
    const answers = await Promise.all(
      variants.map((variant) => call("v1/recommend", { ...body, variant })),
    );
    if (number === newest) drawAnswers(answers, performance.now() - began);
  } catch (error) {
    if (number !== newest) return;
    byId("results").replaceChildren();
    byId("status").textContent = "";
    show(error);
  }
}

function drawAnswers(answers, ms) {
  const lists = answers.map((answer) => new Map(answer.items.map((item, n) => [item.id, n + 1])));
  const columns = answers.map((answer, n) => {
    const other = lists[1 - n];
    const note = (item) => {
      if (!other) return null;
      return other.has(item.id) ? `other: ${other.get(item.id)}` : "only here";
    };
    const { name, variant, fingerprint } = answer.model;
    const title = make("h3", {}, `${variant}: ${name} `);
    title.append(make("span", { className: "id" }, fingerprint.slice(0, 8)));
    return make("div", {}, title, itemList(answer.items, note));
  });
  byId("results").replaceChildren(...columns);
  const said = [`${answers[0].items.length} items in ${ms.toFixed(0)} ms`];
  if (lists[1]) {
    const both = [...lists[0].keys()].filter((id) => lists[1].has(id)).length;
    said.push(`${both} in both lists`);
  }
  if (answers[0].fallback) said.push("nothing is known, so these are popular ones");
  const unknown = answers[0].unknown_items.length;
  if (unknown) said.push(`${unknown} of the history unknown to the model`);
  byId("status").textContent = `${said.join(", ")}.`;
}

async function neighbours(item) {
  const dialog = byId("neighbours");
  byId("neighbours-title").textContent = `Close to ${named(item)}`;
  byId("neighbours-status").textContent = "Asking…";
  byId("neighbours-list").replaceChildren();
  if (!dialog.open) dialog.showModal();
  try {
    const answer = await call("v1/similar", { item: item.id, k: 10 });
    byId("neighbours-status").textContent = "By the cosine of their vectors.";
    byId("neighbours-list").replaceChildren(...itemList(answer.items).children);
    dialog.scrollTop = 0;
  } catch (error) {
    byId("neighbours-status").textContent = error.message;
  }
}

async function describe() {
  try {
    const told = await call("v1/model");
    models = told.models;
    const texts = Object.entries(models).map(
      ([variant, { name, fingerprint, num_items }]) =>
        `${variant}: ${name} ${fingerprint.slice(0, 8)}, ${num_items.toLocaleString()} items`,
    );
    byId("models").textContent = texts.join(" · ");
    byId("k").max = Math.min(...Object.values(models).map((model) => model.k));
    show(null);
  } catch (error) {
    byId("models").textContent = "";
    show(error);
  }
}

// --- live metrics: what has been counted between two readings of /metrics

const EVERY_MS = 2000;
const READINGS = 16;
const readings = [];

// Sums over all labels but `le`, of requests to the API alone.
function parse(text) {
  const sums = { at: performance.now(), buckets: new Map() };
  for (const line of text.split("\n")) {
    const match = /^(jaxrec_\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    if (name.startsWith("jaxrec_request_seconds") && !labels.includes('route="/v')) continue;
    if (name === "jaxrec_request_seconds_bucket") {
      const [, le] = /le="([^"]+)"/.exec(labels);
      const bound = le === "+Inf" ? Infinity : Number(le);
      sums.buckets.set(bound, (sums.buckets.get(bound) ?? 0) + Number(value));
    } else {
      sums[name] = (sums[name] ?? 0) + Number(value);
    }
  }
  return sums;
}

function quantile(share, first, last) {
  const bounds = [...last.buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => last.buckets.get(bound) - (first.buckets.get(bound) ?? 0));
  const total = counts.at(-1);
  if (!total) return null;
  const place = counts.findIndex((count) => count >= share * total);
  if (bounds[place] === Infinity) return `over ${seconds(bounds[place - 1])}`;
  const below = place ? counts[place - 1] : 0;
  const from = place ? bounds[place - 1] : 0;
  const part = (share * total - below) / (counts[place] - below);
  return seconds(from + part * (bounds[place] - from));
}

const seconds = (s) => (s < 1 ? `${(s * 1000).toPrecision(2)} ms` : `${s.toPrecision(2)} s`);

function drawLive() {
  const [first, last] = [readings[0], readings.at(-1)];
  const grown = (name) => (last[name] ?? 0) - (first[name] ?? 0);
  const elapsed = (last.at - first.at) / 1000;
  const batches = grown("jaxrec_batch_size_count");
  const values = {
    rate: (grown("jaxrec_request_seconds_count") / elapsed).toFixed(1),
    p50: quantile(0.5, first, last) ?? "–",
    p99: quantile(0.99, first, last) ?? "–",
    batch: batches ? (grown("jaxrec_batch_size_sum") / batches).toFixed(1) : "–",
    queue: String(last.jaxrec_queue_length ?? 0),
    rejected: (grown("jaxrec_rejected_total") / elapsed).toFixed(1),
  };
  for (const [name, value] of Object.entries(values)) byId(`live-${name}`).textContent = value;
}

async function readLive() {
  if (document.visibilityState !== "visible") return;
  try {
    const response = await fetch("metrics");
    if (!response.ok) throw new Failure("/metrics is not open to this page", "closed");
    readings.push(parse(await response.text()));
    if (readings.length > READINGS) readings.shift();
    if (readings.length > 1) drawLive();
    byId("live-note").textContent = "last 30 seconds of this replica";
  } catch {
    readings.length = 0;
    byId("live-note").textContent = "/metrics does not answer";
  }
}

// --- start

searchField(
  byId("item"),
  byId("item-found"),
  async (text, signal) => (await call(query("v1/items", text), null, signal)).items,
  (item) => {
    history.push(item);
    byId("item").value = "";
    drawHistory();
    recommend();
  },
);
searchField(
  byId("user"),
  byId("user-found"),
  async (text, signal) => {
    const { users } = await call(query("v1/users", text), null, signal);
    return users.map((id) => ({ id }));
  },
  ({ id }) => {
    user = id;
    byId("user").value = id;
    recommend();
  },
);
for (const choice of document.querySelectorAll("input[name=who]")) {
  choice.addEventListener("change", () => {
    byId("for-user").hidden = !forUser();
    byId("for-history").hidden = forUser();
    recommend();
  });
}
byId("request").addEventListener("submit", (event) => {
  event.preventDefault();
  if (forUser() && byId("user").value) user = byId("user").value.trim();
  recommend();
});
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value.trim());
  byId("key").value = "";
  await describe();
  if (byId("error").hidden) recommend();
});
byId("key-form").hidden = !sessionStorage.getItem("key");
drawHistory();
describe();
readLive();
setInterval(readLive, EVERY_MS);
