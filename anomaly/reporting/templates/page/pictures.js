/* Pictures by their address: of a file beside the page, or "#ID" of a text further down in it.

   A text is read when its picture is looked at, and that may be before the browser has got there. */

/** @type {WeakMap<HTMLImageElement, string | null>} */
const addresses = new WeakMap();

/** @param {string} id */
function textOf(id) {
  const block = document.getElementById(id);
  // The last one may still be growing.
  const whole = block && (block.nextElementSibling || document.readyState !== "loading");
  return whole ? block.textContent : "";
}

/**
 * Show the picture of an address in an image; none where there is no address.
 * @param {HTMLImageElement} image
 * @param {string | null} address
 */
export function put(image, address) {
  // What was shown before goes at once: a slow disk must not leave it under another scan's name.
  if (addresses.get(image) !== address) image.removeAttribute("src");
  addresses.set(image, address);
  const source = address?.startsWith("#") ? textOf(address.slice(1)) : address;
  if (source) image.src = source;
  else image.removeAttribute("src");
  if (address && !source && document.readyState === "loading") {
    requestAnimationFrame(() => {
      if (addresses.get(image) === address) put(image, address);
    });
  }
}
