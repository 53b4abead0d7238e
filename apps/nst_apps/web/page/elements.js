// Elements of the page, and the line beside them that says what went wrong.
export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

/** Children as the list has them; a child whose key is unchanged stays, and with it the focus of the keyboard. */
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

/** Do what a person asked for; what goes wrong is one line beside it. */
export async function attempt(work, id = "error") {
  complain("", id);
  try {
    await work();
  } catch (error) {
    complain(error.message, id);
  }
}
