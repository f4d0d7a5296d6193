// Elements of the page.

const byId = (id) => document.getElementById(id);

/** An element with properties. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
