// Helpers for the page's elements and error messages.
export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

/** Update the children to match the list; a child with an unchanged key stays, and keeps the keyboard focus. */
export function reconcile(parent, list, keyOf, build) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const after = list.map((item) => {
    const key = keyOf(item);
    const child = before.get(key) ?? build(item);
    child.dataset.key = key;
    return child;
  });
  if (after.length !== parent.children.length || after.some((child, at) => child !== parent.children[at])) {
    parent.replaceChildren(...after);
  }
}

export function complain(message, id = "error") {
  $(id).textContent = message ? message[0].toUpperCase() + message.slice(1) : "";
  $(id).hidden = !message;
}

/** Do what the user asked for; show an error as one line beside it. */
export async function attempt(work, id = "error") {
  complain("", id);
  try {
    await work();
  } catch (error) {
    complain(error.message, id);
  }
}
