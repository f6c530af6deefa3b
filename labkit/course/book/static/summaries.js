/* Beside each page that a search has found: the words around the one that was looked for.
   `TEXTS` (texts.js): page -> [[anchor, words, code], ...]; `Search` is Sphinx's searchtools.js. */

Search.htmlToText = (text) => text; // ours are plain

const summaryOf = (link) => {
  const [file, anchor = ""] = link.getAttribute("href").split("#");
  const sections = TEXTS[file.replace(/\.html$/, "")] || [];
  const own = sections.filter(([id]) => anchor && id === anchor);
  const said = own.length ? own : sections;
  const text = [...said.map((it) => it[1]), ...said.map((it) => it[2])].join(" "); // words first
  const terms = new URLSearchParams(location.search).get("q").split(/\s+/).filter(Boolean);
  const known = terms.filter((term) => text.toLowerCase().includes(term.toLowerCase()));
  const stems = Search._parseQuery(terms.join(" "))[1]; // "weights" is found by "weight"
  return Search.makeSearchSummary(text, known.length ? known : stems);
};

new MutationObserver(() => {
  for (const link of document.querySelectorAll("#search-results ul.search > li > a")) {
    if (link.parentElement.querySelector(".context, span")) continue; // it has one, or says what it is
    const summary = summaryOf(link);
    if (summary) link.parentElement.append(summary);
  }
}).observe(document.getElementById("search-results"), { childList: true, subtree: true });
