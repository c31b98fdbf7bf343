// Shows how the system stands. Every text from the system is put in as text, never as markup.
"use strict";

const token = new URLSearchParams(location.search).get("token") || "";
const byId = (id) => document.getElementById(id);
const show = (id, text) => { byId(id).textContent = text; };
const dollars = (micros) =>
  (micros / 1e6).toLocaleString("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 0 });

async function ask(view) {
  const answer = await fetch("/api/" + view, { headers: { "x-token": token }, cache: "no-store" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function rows(id, items, cells) {
  byId(id).replaceChildren(...items.map((item) => {
    const row = document.createElement("tr");
    for (const text of cells(item)) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  }));
}

function chart(days) {
  if (days.length < 2) return;
  const values = days.map((day) => day[1]);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const step = Math.max(1, Math.floor(values.length / 1000));
  const points = [];
  for (let index = 0; index < values.length; index += step) {
    const x = (index / (values.length - 1)) * 1000;
    points.push(x.toFixed(1) + "," + (255 - ((values[index] - low) / span) * 250).toFixed(1));
  }
  byId("line").setAttribute("points", points.join(" "));
  show("from", days[0][0]);
  show("to", days[days.length - 1][0]);
  show("low", "lowest " + dollars(low));
  show("high", "highest " + dollars(high));
}

async function refresh() {
  try {
    const [summary, equity, agents, events, orders] = await Promise.all(
      ["summary", "equity", "agents", "events", "orders"].map(ask));
    show("state", summary.state);
    byId("state").className = summary.state === "running" || summary.state === "ended" ? "" : "bad";
    show("market-day", summary.market_day || "-");
    show("equity", dollars(summary.equity));
    show("gain", ((summary.equity / summary.equity_start - 1) * 100).toFixed(1) + " %");
    show("orders", summary.counts.orders.toLocaleString("en-US"));
    show("fills", summary.counts.fills.toLocaleString("en-US"));
    show("grants", summary.counts.grants_issued.toLocaleString("en-US"));
    show("denied", summary.counts.grants_denied.toLocaleString("en-US"));
    show("incidents", summary.incidents_open);
    chart(equity);
    rows("agent-rows", agents, (agent) => [agent.name, agent.status, agent.epoch, agent.task || ""]);
    rows("order-rows", orders.reverse(), (order) =>
      [order.market_time, order.symbol, order.side, order.quantity.toLocaleString("en-US"),
        (order.price / 1e6).toFixed(2), order.status + (order.status === "rejected" ? ": " + order.reason : "")]);
    byId("event-rows").replaceChildren(...events.reverse().slice(0, 40).map((event) => {
      const item = document.createElement("li"), time = document.createElement("time");
      time.textContent = new Date(event.at_ms).toLocaleTimeString();
      item.append(time, event.process + ": " + event.text);
      return item;
    }));
  } catch (error) {
    show("state", "not connected: " + error.message);
    byId("state").className = "bad";
  }
  setTimeout(refresh, 1000);
}

refresh();
