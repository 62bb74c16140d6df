// Open every entry of a Snakemake report by clicking, as a reader would; the page's title tells what was seen of each.
// With #N in the address it stops at entry N, for a screenshot.
(async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const click = async (link) => { link.click(); await pause(400); };
  const opened = [];
  const last = Number(location.hash.slice(1) || Infinity);
  await pause(500);
  for (const name of Object.keys(categories)) {
    if (opened.length >= last) break;
    await click(document.querySelector("#app nav ol a"));
    await click([...document.querySelectorAll("#app ul a, #app li a")].find((link) => link.textContent.trim() === name));
    const rows = () => [...document.querySelectorAll("#app tbody tr")].filter((row) => row.querySelector("a[type=button]"));
    for (let place = 0; place < rows().length && opened.length < last; place++) {
      const view = rows()[place].querySelector("a[type=button]");
      if (view.hasAttribute("download")) { opened.push(`${name}: ${view.download}`); continue; }
      await click(view);
      const shown = [...document.querySelectorAll("#app iframe, #app img")].filter((part) => part.src.startsWith("data:"));
      const whole = shown.filter((part) => part.tagName === "IFRAME" || part.naturalWidth > 100);
      opened.push(`${name}: ${whole.map((part) => part.tagName + " " + part.src.slice(0, 18)).join("+")}`);
    }
  }
  document.title = opened.join(" | ");
})().catch((error) => console.error(`driver: ${error}`));
