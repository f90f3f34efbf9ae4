// Above each ledger: choices that hide the lines of other scales, papers and verdicts. Without script all are shown.
document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("table.ledger").forEach(table => {
  const rows = [...table.tBodies[0].rows], bar = document.createElement("p"), count = document.createElement("output");
  const choices = ["scale", "paper", "verdict"].map(name => {
    const choice = document.createElement("select"), label = document.createElement("label");
    for (const value of ["all", ...new Set(rows.map(row => row.dataset[name]))]) choice.add(new Option(value));
    choice.onchange = update;
    label.append(`${name} `, choice);
    bar.append(label, " ");
    return [name, choice];
  });
  function update() {
    for (const row of rows)
      row.hidden = choices.some(([name, choice]) => choice.selectedIndex && choice.value !== row.dataset[name]);
    count.value = `${rows.filter(row => !row.hidden).length} of ${rows.length} lines`;
  }
  bar.className = "choices";
  bar.append(count);
  (table.closest(".wide") ?? table).before(bar);
  update();
}));
