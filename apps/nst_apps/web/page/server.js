// Requests to the page's server.
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The page's server does not answer. Try again in a moment.", 0);
  }
  const answer = await response.json().catch(() => ({ error: `The page's server answered with status ${response.status}.` }));
  if (!response.ok) throw new Refused(answer.error, response.status);
  return answer;
}

export const post = (path, body) => ask(path, { method: "POST", body });
