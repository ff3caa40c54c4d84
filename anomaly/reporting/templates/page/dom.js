/* Elements of the page: found by their id, and made. Text is set as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return the element of an id; an error where the page has none of that kind.
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind such as HTMLInputElement
 * @returns {T}
 */
export function get(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`the page has no ${kind.name} "${id}"`);
  return element;
}

/**
 * Return the element of an id, of any kind of HTML.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function box(id) {
  return get(id, HTMLElement);
}

/**
 * Make an element.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {string} [text]
 * @param {string} [className]
 * @returns {HTMLElementTagNameMap[T]}
 */
export function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

/**
 * Make an element of a drawing.
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string | number>} attributes
 * @returns {SVGElementTagNameMap[T]}
 */
export function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}

/**
 * Make a cell of a table.
 * @param {string} text
 * @param {boolean} [number] it stands to the right
 */
export function cell(text, number = false) {
  return make("td", text, number ? "number" : "");
}

/**
 * Make the head of a row.
 * @param {string} text
 */
export function head(text) {
  const element = make("th", text);
  element.scope = "row";
  return element;
}
