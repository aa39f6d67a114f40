// Asking the command that opened this page. Changes are sent one after the other, in the order in which they were made.

const TOKEN = decodeURIComponent(location.hash.slice(1));
const watchers = [];
let waiting = [];
let sending = false;

export async function asked(path, options = {}) {
  const reply = await fetch(path, { ...options, headers: { 'X-Page-Token': TOKEN } });
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({}));
  const error = new Error(told.error || `the command answers ${reply.status}`);
  error.final = true; // it was heard; asking again would bring the same
  throw error;
}

export const read = async (path) => (await asked(path)).json();
export const bytes = async (path) => new Uint8Array(await (await asked(path)).arrayBuffer());
export const picture = async (path) =>
  createImageBitmap(await (await asked(path)).blob(), { imageOrientation: 'none' }); // as it is stored

// How many changes are still on their way, and what went wrong with the first of them.
export const watch = (watcher) => watchers.push(watcher);
const tell = (error) => watchers.forEach((watcher) => watcher(waiting.length, error));

// Send a change. Of changes that wait, a later one of the same kind and row stands for the earlier.
export function write(path, body, heard = () => {}) {
  waiting = waiting.filter((one, k) => one.path !== path || !(k > 0 || !sending) || path.endsWith('decision'));
  waiting.push({ path, body, heard });
  tell(null);
  send();
}

export async function send() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const { path, body, heard } = waiting[0];
    try {
      const content = body instanceof Uint8Array ? body : JSON.stringify(body);
      const reply = await (await asked(path, { method: 'PUT', body: content })).json();
      waiting.shift();
      heard(reply);
      tell(null);
    } catch (error) {
      if (error.final) waiting.shift();
      sending = false;
      tell(error);
      return;
    }
  }
  sending = false;
}

export const settled = () => waiting.length === 0;
