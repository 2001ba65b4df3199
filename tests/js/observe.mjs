// What a run of a client against a real service must show, whichever client it is. Used by client-run.mjs and
// reference-run.mjs, which a test of the service calls with
//
//   COMFY_REMOTE_URL, SSH_CONNECTION, WORKFLOW_FILE
//   WORKFLOW_NAME      default: "From JavaScript"
//   EXPECT_STATUS      completed (default), failed, or cancelled: then it cancels as soon as the workflow executes
//   HURRY              set: no pause between two looks (reference-run.mjs only)
//   WORKFLOW_OPTIONS   JSON object with more fields of the request (client-run.mjs only)
//
// They print what they saw as one JSON document and exit with 0, or print the mismatch and exit with 1.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';

const ORDER = ['queued', 'executing', 'completed'];

const TEXT = ['string'];
const NUMBER = ['number'];
const TEXT_OR_NULL = ['string', 'null'];

/** The fields that the API reference names, and what may be in them. */
const PROGRESS_FIELDS = {
  workflow_id: TEXT,
  workflow_name: TEXT,
  prompt_id: TEXT_OR_NULL,
  ssh_connection: TEXT,
  workflow_file: TEXT,
  status: TEXT,
  queue_position: ['number', 'null'],
  current_node: TEXT_OR_NULL,
  total_nodes: NUMBER,
  completed_nodes: NUMBER,
  progress_percent: NUMBER,
  nodes: ['array'],
  queue_time: TEXT,
  start_time: TEXT_OR_NULL,
  end_time: TEXT_OR_NULL,
  last_update: TEXT,
  outputs: ['array'],
  error_message: TEXT_OR_NULL,
  failed_node: TEXT_OR_NULL,
};
const NODE_FIELDS = { node_id: TEXT, node_type: TEXT, status: TEXT, progress: NUMBER, message: TEXT_OR_NULL };
const OUTPUT_FIELDS = {
  filename: TEXT,
  file_type: TEXT,
  remote_path: TEXT,
  local_path: TEXT_OR_NULL,
  downloaded: ['boolean'],
};

function kind(value) {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
}

function checkFields(what, value, fields) {
  for (const [name, kinds] of Object.entries(fields)) {
    assert.ok(kinds.includes(kind(value[name])), `${what}.${name} is ${JSON.stringify(value[name])}`);
  }
}

function checkLooks(looks) {
  for (const look of looks) {
    checkFields('progress', look, PROGRESS_FIELDS);
    look.nodes.forEach((node) => checkFields('node', node, NODE_FIELDS));
    look.outputs.forEach((output) => checkFields('output', output, OUTPUT_FIELDS));
    const done = look.progress_percent === 100;
    assert.equal(done, look.status === 'completed', `${look.progress_percent}% while ${look.status}`);
  }
  for (const [index, after] of looks.entries()) {
    const before = looks[Math.max(0, index - 1)];
    assert.ok(after.progress_percent >= before.progress_percent, 'progress_percent fell');
    if (ORDER.includes(after.status)) {
      assert.ok(ORDER.indexOf(after.status) >= ORDER.indexOf(before.status), `${before.status}, then ${after.status}`);
    }
  }
}

function checkOutputs(outputs) {
  for (const output of outputs) {
    checkFields('output', output, OUTPUT_FIELDS);
    assert.equal(output.downloaded, output.local_path !== null, JSON.stringify(output));
    if (output.downloaded) assert.ok(existsSync(output.local_path), `${output.local_path} is not there`);
  }
}

async function rejection(promise) {
  try {
    await promise;
  } catch (error) {
    return error.message;
  }
  return null;
}

/** Runs one workflow with a client and checks all that it sees. */
async function observe(client, execute) {
  const expected = process.env.EXPECT_STATUS ?? 'completed';
  const id = await execute(client);
  assert.match(id, /^comfyui_workflow_\d+_[0-9a-f]{8}$/);

  const looks = [];
  let cancel;
  const ended = rejection(
    client.monitorWorkflow(id, (progress) => {
      looks.push(progress);
      if (expected === 'cancelled' && progress.status === 'executing') cancel ??= client.cancelWorkflow(id);
    }),
  );
  const thrown = await ended;
  await cancel;
  const last = looks.at(-1);
  assert.equal(last.status, expected, last.error_message);
  assert.equal(thrown === null, expected === 'completed', `monitorWorkflow threw ${thrown}`);
  if (expected === 'failed') assert.equal(thrown, last.error_message);
  checkLooks(looks);

  const outputs = await client.getOutputs(id);
  checkOutputs(outputs);
  assert.deepEqual(outputs, last.outputs, 'the outputs differ from those in the progress');
  if (expected === 'completed') assert.ok(outputs.every((output) => output.downloaded), 'completed without its files');

  const state = await client.restoreState();
  checkFields('state', state, PROGRESS_FIELDS);
  assert.equal(await rejection(client.cancelWorkflow(id)), `Workflow not found or already completed: ${id}`);
  assert.equal(await rejection(client.getProgress('nope')), 'Workflow not found: nope');
  return { workflow_id: id, statuses: looks.map(({ status }) => status), last, thrown, outputs, state };
}

/** The whole of a runner: observes, lets `alsoSee` add to it, prints, and sets the exit code. */
export async function run(client, execute, alsoSee = async () => ({})) {
  try {
    const seen = await observe(client, execute);
    Object.assign(seen, await alsoSee(seen));
    console.log(JSON.stringify(seen, null, 2));
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  }
}

/** A variable that must be set. */
export function setting(name) {
  const value = process.env[name];
  if (!value) {
    console.error(`${name} is not set`);
    process.exit(2);
  }
  return value;
}
