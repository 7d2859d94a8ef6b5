// Keeps a page up to date: fetches it again and replaces the sections that changed.
// What somebody is using (focus, selected text, an opened list, a scrolled table) stays.
"use strict";
(() => {
  const address = new URL(location.pathname, location.origin); // without user and password, which fetch refuses
  const lost = document.getElementById("lost");

  function selecting(node) {
    const s = getSelection();
    return s && !s.isCollapsed && s.anchorNode && node.contains(s.anchorNode);
  }

  // What can have the focus.
  function reachable(node) {
    return [...node.querySelectorAll("a[href], button, summary, input, [tabindex]")];
  }

  function replace(old, fresh) {
    if (old.outerHTML === fresh.outerHTML || selecting(old)) return;
    const was = document.activeElement;
    const focused = reachable(old).indexOf(was);
    const opened = [...old.querySelectorAll("details[open][id]")].map((d) => d.id);
    const scrolled = [...old.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
    const node = document.importNode(fresh, true);
    old.replaceWith(node);
    for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
    node.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = scrolled[i] || 0; });
    // Only the same thing gets the focus back: Enter must not press another button.
    const same = focused >= 0 && reachable(node)[focused];
    if (same && same.tagName === was.tagName && same.id === was.id && same.getAttribute("href") === was.getAttribute("href")) same.focus({ preventScroll: true });
  }

  // Each child of main has an id. They keep their order; new ones come in, others go.
  function update(page) {
    const main = document.getElementById("main");
    for (const old of [...main.children]) {
      if (!page.getElementById(old.id)) old.remove();
    }
    let place = main.firstElementChild;
    for (const fresh of page.getElementById("main").children) {
      if (place && place.id === fresh.id) {
        const next = place.nextElementSibling;
        replace(place, fresh);
        place = next;
      } else {
        document.getElementById(fresh.id)?.remove(); // it has moved
        main.insertBefore(document.importNode(fresh, true), place);
      }
    }
    const announce = document.getElementById("announce");
    const news = page.getElementById("announce").textContent;
    if (announce.textContent !== news) announce.textContent = news;
    document.getElementById("asof").innerHTML = page.getElementById("asof").innerHTML;
    document.title = page.title;
    document.body.dataset.poll = page.body.dataset.poll;
  }

  function complain(text) {
    lost.textContent = text;
    lost.hidden = !text;
    document.body.classList.toggle("stale", Boolean(text));
  }

  async function look() {
    try {
      const answer = await fetch(address, { cache: "no-store", headers: { Accept: "text/html" }, signal: AbortSignal.timeout(15000) });
      if (answer.status === 401) { complain("You are logged out. Load the page anew to log in."); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (answer.ok && page.getElementById("main")) {
        if (document.body.dataset.state === "away") { location.reload(); return; }
        update(page);
        complain("");
      } else if (answer.status === 503) {
        complain("Redis is away. This is how things were when it last answered; trying again.");
      } else {
        complain("The dashboard answers with an error (" + answer.status + "). Load the page anew.");
      }
    } catch {
      complain("The dashboard does not answer. This is how things were when it last did; trying again.");
    }
  }

  async function loop() {
    for (;;) {
      await new Promise((done) => setTimeout(done, Number(document.body.dataset.poll) || 10000));
      if (Number(document.body.dataset.poll) === 0) return; // the last state of a run does not change
      if (document.visibilityState === "visible") await look();
    }
  }
  loop();
})();
