// Sorting and filtering of the board, in the browser.
(() => {
  const rank = { bad: 0, warning: 1, neutral: 2, muted: 3, good: 4 };
  const rows = (root) => [...root.querySelectorAll("tbody tr")];
  const filter = (root) => {
    const wanted = root.querySelector("[data-filter=text]").value.trim().toLowerCase();
    const verdict = root.querySelector("[data-filter=tone]").value;
    const product = root.querySelector("[data-filter=product]").value;
    let n = 0;
    for (const row of rows(root)) {
      const seen =
        (!wanted || row.textContent.toLowerCase().includes(wanted)) &&
        (!verdict || row.dataset.tone === verdict) &&
        (!product || row.dataset.product === product);
      row.hidden = !seen;
      n += seen;
    }
    root.querySelector(".count").textContent = n === 1 ? "1 report" : `${n} reports`;
  };
  const sort = (root, head) => {
    const index = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.children[index].dataset.sort ?? row.children[index].textContent;
    const value = (row) => (key(row) in rank ? String(rank[key(row)]) : key(row));
    const sorted = rows(root).sort((a, b) => value(a).localeCompare(value(b), "en", { numeric: true }));
    root.querySelector("tbody").append(...(up ? sorted : sorted.reverse()));
  };
  document.addEventListener("click", (event) => {
    const head = event.target.closest?.(".board th");
    if (head && event.target.closest("button")) sort(head.closest(".board-all"), head);
  });
  for (const kind of ["input", "change"])
    document.addEventListener(kind, (event) => {
      const tool = event.target.closest?.("[data-filter]");
      if (tool) filter(tool.closest(".board-all"));
    });
  // A report that is opened from the list comes into view.
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-report]")) return;
    const place = document.getElementById("opened-report");
    const seen = new MutationObserver(() => {
      seen.disconnect();
      place.scrollIntoView({ behavior: "smooth", block: "start" });
    });
    if (place) seen.observe(place, { childList: true, subtree: true, characterData: true });
  });
})();
