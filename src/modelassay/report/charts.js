// Draws what stands as data in `figure.chart`, once it is seen, in the colours of the page.
// `window.assayPlotly` is where plotly is fetched from if it is not on the page.
(() => {
  const colour = (at, name) => getComputedStyle(at).getPropertyValue(name).trim();
  const merged = (base, own) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(own || {})) {
      const nested = value && typeof value === "object" && !Array.isArray(value);
      out[key] = nested ? merged(out[key] || {}, value) : value;
    }
    return out;
  };
  const styled = (at, layout) => {
    const ink = colour(at, "--ink") || "#1b2127";
    const line = colour(at, "--line") || "#d5dbe1";
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink },
      hoverlabel: { font: { family: "inherit" } },
      autosize: true,
    };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    for (const key of new Set([...axes, "xaxis", "yaxis"])) base[key] = axis;
    const out = merged(base, layout);
    out.font = { ...out.font, family: getComputedStyle(at).fontFamily, color: ink };
    if (at.clientWidth < 500 && out.title) {
      out.title = { ...out.title, font: { size: 13 } };
      out.margin = { ...out.margin, l: 45, r: 8 };
    }
    return out;
  };
  // A black line cannot be seen on a dark page.
  const seen = (at, data) =>
    JSON.parse(JSON.stringify(data).replaceAll('"#000000"', `"${colour(at, "--ink") || "#000"}"`));
  let fetched = null;
  const plotly = () => {
    if (window.Plotly) return Promise.resolve(window.Plotly);
    fetched ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = window.assayPlotly || "";
      script.onload = () => resolve(window.Plotly);
      script.onerror = reject;
      document.head.append(script);
    });
    return fetched;
  };
  const draw = async (at) => {
    const library = await plotly();
    if (!at.isConnected) return;
    const figure = JSON.parse(at.dataset.chart);
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    at.classList.add("drawn");
    await library.newPlot(at, seen(at, figure.data), styled(at, figure.layout || {}), options);
  };
  const watched = new WeakSet();
  const near = (entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
  };
  const watcher = new IntersectionObserver(near, { rootMargin: "400px" });
  const look = () => {
    for (const at of document.querySelectorAll("figure.chart[data-chart]"))
      if (!watched.has(at)) {
        watched.add(at);
        watcher.observe(at);
      }
  };
  new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
  look();
})();
