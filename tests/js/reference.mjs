// Loads the API reference's own client, which is a script for web pages, into a page of its own: `window`, a console
// that is kept, and a `fetch` that goes to the service under test instead of the reference's default address.

import { readFileSync } from 'node:fs';
import { createContext, runInContext } from 'node:vm';

const SCRIPT = new URL('../fixtures/reference-client.js', import.meta.url);
const DEFAULT_URL = 'http://localhost:5000';

const hurried = {
  setInterval(look) {
    const interval = { cleared: false };
    const turn = async () => {
      if (interval.cleared) return;
      await look();
      setImmediate(turn);
    };
    setImmediate(turn);
    return interval;
  },
  clearInterval(interval) {
    interval.cleared = true;
  },
};

/**
 * @param {string} baseUrl Where the service is.
 * @param {{ hurry?: boolean }} [options] `hurry` leaves out the script's two seconds between looks; the next look then
 *   waits for the one before it, so that what is seen depends on nobody's speed.
 * @returns {{
 *   Client: any, runWorkflow: () => Promise<void>, load: () => Promise<void>, said: string[], errors: string[]
 * }} `said` and `errors` are what it wrote to its console.
 */
export function loadReference(baseUrl, { hurry = false } = {}) {
  const onLoad = [];
  const said = [];
  const errors = [];
  const page = createContext({
    window: {
      addEventListener: (event, listener) => event === 'load' && onLoad.push(listener),
    },
    console: {
      log: (...words) => said.push(words.join(' ')),
      error: (...words) => errors.push(words.join(' ')),
    },
    fetch: (url, init) => fetch(url.replace(DEFAULT_URL, baseUrl), init),
    ...(hurry ? hurried : { setInterval, clearInterval }),
  });
  runInContext(readFileSync(SCRIPT, 'utf8'), page);
  return {
    Client: runInContext('ComfyUIWorkflowClient', page),
    runWorkflow: runInContext('runWorkflow', page),
    load: async () => {
      for (const listener of onLoad) await listener();
    },
    said,
    errors,
  };
}
