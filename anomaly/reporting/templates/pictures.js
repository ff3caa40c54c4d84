"use strict";
/* Pictures by their address: of a file beside the page, or "#ID" of a text further down in it.

   A text is read when its picture is looked at, and that may be before the browser has got there. */

const $ = (id) => document.getElementById(id);

const pictures = (() => {
  const wanted = new WeakMap();

  function textOf(id) {
    const block = $(id);
    // The last one may still be growing.
    return block && (block.nextElementSibling || document.readyState !== "loading") ? block.textContent : "";
  }

  function put(image, address) {
    // What was shown before goes at once: a slow disk must not leave it under another scan's name.
    if (wanted.get(image) !== address) image.removeAttribute("src");
    wanted.set(image, address);
    const source = address?.startsWith("#") ? textOf(address.slice(1)) : address;
    if (source) image.src = source;
    else image.removeAttribute("src");
    if (address && !source && document.readyState === "loading") {
      requestAnimationFrame(() => {
        if (wanted.get(image) === address) put(image, address);
      });
    }
  }

  return { put };
})();
