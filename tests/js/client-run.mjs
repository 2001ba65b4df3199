// Runs the example client against a service; see observe.mjs.

import assert from 'node:assert/strict';

import { ComfyUIWorkflowClient } from '../../examples/comfyui-workflow-client.js';
import { run, setting } from './observe.mjs';

const client = new ComfyUIWorkflowClient(setting('COMFY_REMOTE_URL'));
const options = JSON.parse(process.env.WORKFLOW_OPTIONS ?? '{}');

const execute = async () => {
  const id = await client.executeWorkflow(
    setting('SSH_CONNECTION'),
    setting('WORKFLOW_FILE'),
    process.env.WORKFLOW_NAME ?? 'From JavaScript',
    options,
  );
  assert.equal(await client.isActive(id), true);
  return id;
};

await run(client, execute, async ({ workflow_id: id }) => {
  const active = await client.isActive(id);
  assert.equal(active, false);
  return { active };
});
