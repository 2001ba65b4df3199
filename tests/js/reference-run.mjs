// Runs the API reference's own client, and its page, against a service; see observe.mjs. That client sends nothing but
// the connection, the file and the name, so ComfyUI's port and folders must be the service's defaults.

import assert from 'node:assert/strict';

import { run, setting } from './observe.mjs';
import { loadReference } from './reference.mjs';

const url = setting('COMFY_REMOTE_URL');
const reference = loadReference(url, { hurry: Boolean(process.env.HURRY) });
const name = process.env.WORKFLOW_NAME ?? 'From JavaScript';

const execute = (client) => client.executeWorkflow(setting('SSH_CONNECTION'), setting('WORKFLOW_FILE'), name);

await run(new reference.Client(url), execute, async ({ last }) => {
  // A page that is loaded now finds the newest workflow and looks at it once more.
  await reference.load();
  assert.match(reference.said[0] ?? 'nothing', /^Restoring workflow: .+ \([\d.]+%\)$/);
  if (last.status === 'completed') assert.deepEqual(reference.errors, []);
  return { page: reference.said };
});
