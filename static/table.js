/** Tables of live records: rows are made once from the page's <template> and changed in place, cell by cell.
 *
 *  A row's cells name their column (data-column); a column is {show(record): text, sort(record)?: number or text,
 *  paint(cell, record)?}. `paint` is for cells that are more than a text, and is called when `show` has changed. Text
 *  is only ever set as textContent. Sorting, filter and ticks are kept while records come and go. */

// Where rows are laid out as cards, browsers take them for no table any more unless they are told.
const ROLES = [["thead, tbody", "rowgroup"], ["tr", "row"], ["td", "cell"], ["th[scope=col]", "columnheader"],
               ["th[scope=row]", "rowheader"]];
const PAGE = 1000;                  // rows shown at most before the user asks for more: browsers lay out every one
const collator = new Intl.Collator("en", {numeric: true, sensitivity: "base"});

const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);

export class LiveTable {
  /** `table`: the <table>; `key(record)`: its identity; `options`: sort and descending at first, label(record): its
   *  name for people, filter(record): the text that is searched, changed(): called after every change,
   *  mark(row, record): called when a row is painted. */
  constructor(table, key, columns, options) {
    this.table = table;
    this.body = table.tBodies[0];
    this.template = document.getElementById(table.id + "-row").content.firstElementChild;
    for (const [css, role] of ROLES) {
      for (const root of [table, this.template.parentNode]) {
        for (const element of root.querySelectorAll(css)) element.setAttribute("role", role);
      }
    }
    table.setAttribute("role", "table");
    this.key = key;
    this.columns = columns;
    this.options = options;
    this.sortBy = options.sort;
    this.descending = Boolean(options.descending);
    this.wanted = "";               // what the filter asks for
    this.limit = PAGE;
    this.records = new Map();
    this.rows = new Map();          // key -> {element, cells, record}, of those that are shown
    this.order = [];                // keys of all that pass the filter, sorted
    this.ticked = new Set();
    this.more = document.getElementById(table.id + "-more");
    if (this.more) this.more.addEventListener("click", () => { this.limit += PAGE; this.arrange(); });
    this.body.addEventListener("change", (event) => this.tick(event.target));
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th[data-sort]");
      if (head) this.sort(head.dataset.sort, this.sortBy === head.dataset.sort && !this.descending);
    });
    this.all = table.tHead.querySelector("input[type=checkbox]");
    if (this.all) this.all.addEventListener("change", () => this.tickAll(this.all.checked));
    this.markSort();
  }

  /** Show these records and no other. */
  replace(records) {
    const kept = new Set(records.map(this.key));
    this.update(records, [...this.records.keys()].filter((key) => !kept.has(key)));
  }

  /** Add or change `records`, and remove those with a key in `gone`. */
  update(records, gone) {
    let moved = false;
    for (const key of gone || []) {
      moved = this.records.delete(key) || moved;
      this.ticked.delete(key);
    }
    for (const record of records) {
      const key = this.key(record), before = this.records.get(key);
      moved = moved || !before || this.wanted !== "" || compare(this.rank(before), this.rank(record)) !== 0;
      this.records.set(key, record);
      if (before && this.rows.has(key)) this.paint(this.rows.get(key), record);
    }
    if (moved) this.arrange();
    this.changed();
  }

  /** Sort by this column. */
  sort(column, descending) {
    this.sortBy = column;
    this.descending = descending;
    this.markSort();
    this.arrange();
    this.changed();
  }

  /** Show only records whose `options.filter` text has `wanted` in it. */
  filter(wanted) {
    this.wanted = wanted.trim().toLowerCase();
    this.arrange();
    const passed = new Set(this.order);         // nothing is acted on that cannot be seen
    for (const key of [...this.ticked]) if (!passed.has(key)) this.ticked.delete(key);
    this.changed();
  }

  /** Mark rows anew: something that records do not hold, as the time, has changed. */
  mark() {
    for (const row of this.rows.values()) this.options.mark(row.element, row.record);
  }

  /** Paint and sort all rows anew: their cells show something that records do not hold, and it has changed. */
  repaint() {
    for (const row of this.rows.values()) this.paint(row, row.record);
    this.arrange();
  }

  /** The name for people of the record with this key. */
  label(key) {
    return this.options.label(this.records.get(key));
  }

  rank(record) {
    const column = this.columns[this.sortBy];
    const value = (column.sort || column.show)(record);
    return value === null || value === undefined ? -1 : value;
  }

  markSort() {
    for (const head of this.table.tHead.querySelectorAll("th[data-sort]")) {
      head.removeAttribute("aria-sort");
      if (head.dataset.sort !== this.sortBy) continue;
      head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
    }
  }

  passes(record) {
    return !this.wanted || this.options.filter(record).toLowerCase().includes(this.wanted);
  }

  /** Bring the rows into order with as few moves as can be had cheaply; the focus stays where it is. */
  arrange() {
    const ranked = [];
    for (const [key, record] of this.records) if (this.passes(record)) ranked.push([this.rank(record), key]);
    const sign = this.descending ? -1 : 1;
    ranked.sort((a, b) => sign * compare(a[0], b[0]) || compare(a[1], b[1]));
    this.order = ranked.map((item) => item[1]);
    const shown = this.order.slice(0, this.limit), keep = new Set(shown), focused = document.activeElement;
    for (const [key, row] of this.rows) {
      if (!keep.has(key)) {
        row.element.remove();
        this.rows.delete(key);
      }
    }
    let next = this.body.firstElementChild;
    for (const key of shown) {
      const element = this.row(key).element;
      if (element === next) next = next.nextElementSibling;
      else this.body.insertBefore(element, next);
    }
    if (focused !== document.activeElement && this.body.contains(focused)) focused.focus({preventScroll: true});
    if (this.more) {
      this.more.hidden = this.order.length <= this.limit;
      this.more.textContent = "Show more: " + shown.length + " of " + this.order.length + " rows are shown";
    }
  }

  row(key) {
    let row = this.rows.get(key);
    if (!row) {
      const element = this.template.cloneNode(true), record = this.records.get(key);
      const cells = [...element.querySelectorAll("[data-column]")].map(
        (node) => ({node, column: this.columns[node.dataset.column], shown: null}));
      const box = element.querySelector("input[type=checkbox]");
      row = {element, cells, box, record};
      this.rows.set(key, row);
      if (box) {
        box.dataset.key = key;
        box.checked = this.ticked.has(key);
        box.setAttribute("aria-label", "Tick " + this.options.label(record));
      }
      this.paint(row, record);
    }
    return row;
  }

  paint(row, record) {
    row.record = record;
    if (this.options.mark) this.options.mark(row.element, record);
    for (const cell of row.cells) {
      const text = cell.column.show(record);
      if (text === cell.shown) continue;
      cell.shown = text;
      if (cell.column.paint) cell.column.paint(cell.node, record);
      else cell.node.textContent = text;
    }
  }

  tick(box) {
    if (box.dataset.key === undefined) return;
    if (box.checked) this.ticked.add(box.dataset.key);
    else this.ticked.delete(box.dataset.key);
    this.changed();
  }

  tickAll(wanted) {
    this.ticked = new Set(wanted ? this.order : []);
    for (const [key, row] of this.rows) row.box.checked = this.ticked.has(key);
    this.changed();
  }

  changed() {
    if (this.all) {
      this.all.checked = this.order.length > 0 && this.order.every((key) => this.ticked.has(key));
      this.all.indeterminate = this.ticked.size > 0 && !this.all.checked;
    }
    if (this.options.changed) this.options.changed();
  }
}
