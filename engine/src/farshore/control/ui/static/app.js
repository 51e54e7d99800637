"use strict";
// Times in the visitor's own zone; without this script they stay in UTC, and say so.
const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
function localTimes(root) {
  for (const element of root.querySelectorAll("time[data-clock]")) {
    element.title = element.textContent;
    element.textContent = clock.format(new Date(element.dateTime));
    element.removeAttribute("data-clock");
  }
  for (const option of root.querySelectorAll("option[data-clock]")) {
    option.textContent = option.textContent.replace(/^.*? UTC/, clock.format(new Date(option.dataset.clock)));
  }
}
localTimes(document);
document.addEventListener("htmx:afterSwap", () => localTimes(document));

// A page that has stopped living must not look as if all were well.
const silent = (away) => document.body.classList.toggle("away", away);
for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(name, () => silent(true));
}
document.addEventListener("htmx:afterOnLoad", (event) => {
  if (event.detail.successful !== false && event.detail.xhr.status < 400) silent(false);
});

// One click, one run.
document.addEventListener("submit", (event) => {
  for (const button of event.target.querySelectorAll("button")) {
    setTimeout(() => { button.disabled = true; }, 0);
  }
});
// Back from another page, the browser may show this one as it was left: its buttons must work.
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("form button")) button.disabled = false;
});
