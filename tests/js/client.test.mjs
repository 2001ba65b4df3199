// The example client against the stub.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ComfyUIWorkflowClient, WorkflowError } from '../../examples/comfyui-workflow-client.js';
import { BROKEN, CANCELLED, COMPLETED, EXECUTING, FAILED, QUEUED, startStub } from './stub.mjs';

const FAST = { intervalMs: 1 };

/** Declares a test that gets a client of a stub with these looks. */
function clientTest(name, looks, body) {
  test(name, async () => {
    const stub = await startStub(looks);
    try {
      await body(new ComfyUIWorkflowClient(`${stub.url}/`), stub);
    } finally {
      await stub.close();
    }
  });
}

const start = (client) => client.executeWorkflow('ssh root@box', '/w.json', 'Stub');

clientTest('execute sends the three fields and the options', [COMPLETED], async (client, stub) => {
  const id = await client.executeWorkflow('ssh root@box', '/w.json', 'Mine', {
    input_images: ['/a.png'],
    comfyui_port: 8188,
  });
  assert.equal(id, COMPLETED.workflow_id);
  const [request] = stub.requests;
  assert.equal(request.headers['content-type'], 'application/json');
  assert.deepEqual(request.body, {
    input_images: ['/a.png'],
    comfyui_port: 8188,
    ssh_connection: 'ssh root@box',
    workflow_file: '/w.json',
    workflow_name: 'Mine',
  });
});

clientTest('a name that is not given is left to the service', [COMPLETED], async (client, stub) => {
  await client.executeWorkflow('ssh root@box', '/w.json');
  assert.deepEqual(stub.requests[0].body, { ssh_connection: 'ssh root@box', workflow_file: '/w.json' });
});

clientTest('a refusal is an error with the message and the status', [COMPLETED], async (client) => {
  await assert.rejects(client.executeWorkflow('ssh root@box', '/w.txt'), (error) => {
    assert.ok(error instanceof WorkflowError);
    assert.equal(error.message, 'Workflow file not found: /w.txt');
    assert.equal(error.httpStatus, 400);
    return true;
  });
});

const GOOD = [QUEUED, EXECUTING, COMPLETED];

clientTest('monitor shows every look and returns the completed progress', GOOD, async (client) => {
  const seen = [];
  const id = await start(client);
  const last = await client.monitorWorkflow(id, (progress) => seen.push(progress.status), FAST);
  assert.deepEqual(seen, ['queued', 'executing', 'completed']);
  assert.deepEqual(last, COMPLETED);
});

clientTest('monitor throws what the workflow failed of', [EXECUTING, FAILED], async (client) => {
  const id = await start(client);
  await assert.rejects(client.monitorWorkflow(id, undefined, FAST), (error) => {
    assert.equal(error.message, 'Node execution failed: Out of memory');
    assert.deepEqual(error.progress, FAILED);
    return true;
  });
});

clientTest('monitor tells a cancelled workflow from a failed one', [CANCELLED], async (client) => {
  const id = await start(client);
  await assert.rejects(client.monitorWorkflow(id, undefined, FAST), (error) => {
    assert.equal(error.message, 'Workflow cancelled');
    assert.equal(error.progress.status, 'cancelled');
    return true;
  });
});

const LOSSY = [BROKEN, BROKEN, BROKEN, BROKEN, EXECUTING, BROKEN, COMPLETED];

clientTest('monitor outlives lost looks', LOSSY, async (client) => {
  const seen = [];
  const id = await start(client);
  await client.monitorWorkflow(id, (progress) => seen.push(progress.status), FAST);
  assert.deepEqual(seen, ['executing', 'completed']);
});

clientTest('monitor gives up after five lost looks in a row', [QUEUED, BROKEN], async (client, stub) => {
  const id = await start(client);
  await assert.rejects(client.monitorWorkflow(id, undefined, FAST), { httpStatus: 502 });
  assert.equal(stub.requests.filter(({ path }) => path.endsWith('/progress')).length, 6);
});

clientTest('monitor does not wait for a workflow that is not there', [COMPLETED], async (client, stub) => {
  await assert.rejects(client.monitorWorkflow('nope', undefined, FAST), { message: 'Workflow not found: nope' });
  assert.equal(stub.requests.length, 1);
});

clientTest('an abort ends the watching at once', [EXECUTING], async (client) => {
  const watching = new AbortController();
  const id = await start(client);
  const options = { intervalMs: 3_600_000, signal: watching.signal };
  const end = client.monitorWorkflow(id, () => watching.abort(new Error('seen enough')), options);
  await assert.rejects(end, { message: 'seen enough' });
});

clientTest('an error of the callback is not swallowed', [EXECUTING], async (client) => {
  const id = await start(client);
  const fails = () => {
    throw new TypeError('mine');
  };
  await assert.rejects(client.monitorWorkflow(id, fails, FAST), { name: 'TypeError', message: 'mine' });
});

clientTest('cancel sends no body', [EXECUTING], async (client, stub) => {
  const id = await start(client);
  assert.equal(await client.cancelWorkflow(id), undefined);
  assert.equal(stub.requests.at(-1).method, 'POST');
  assert.equal(stub.requests.at(-1).body, undefined);
});

clientTest('outputs, state and active', [EXECUTING, COMPLETED], async (client) => {
  assert.equal(await client.restoreState(), null);
  const id = await start(client);
  assert.deepEqual(await client.restoreState(), EXECUTING);
  assert.equal(await client.isActive(id), true);
  await client.monitorWorkflow(id, undefined, FAST);
  assert.equal(await client.isActive(id), false);
  assert.deepEqual(await client.getOutputs(id), COMPLETED.outputs);
});

clientTest('an id is one path segment, whatever is in it', [COMPLETED], async (client, stub) => {
  await assert.rejects(client.getProgress('../state?x'), { httpStatus: 404 });
  assert.equal(stub.requests[0].path, '..%2Fstate%3Fx/progress');
});

test('no service: fetch says so', async () => {
  const stub = await startStub();
  await stub.close();
  await assert.rejects(new ComfyUIWorkflowClient(stub.url).restoreState(), TypeError);
});
