// The API reference's own client against the stub: shows that the loader and the stub are true to it, so that
// reference-run.mjs can be trusted with the service.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { loadReference } from './reference.mjs';
import { COMPLETED, EXECUTING, FAILED, QUEUED, startStub } from './stub.mjs';

function referenceTest(name, looks, body) {
  test(name, async () => {
    const stub = await startStub(looks);
    try {
      await body(loadReference(stub.url, { hurry: true }), stub);
    } finally {
      await stub.close();
    }
  });
}

referenceTest('its usage example runs to the end', [QUEUED, EXECUTING, COMPLETED], async (reference) => {
  await reference.runWorkflow();
  assert.deepEqual(reference.errors, []);
  assert.deepEqual(reference.said, [
    'Starting workflow...',
    'Workflow started: comfyui_workflow_1732234567_00abc123',
    'Progress: 0% - queued',
    'Current node: None',
    'Progress: 50% - executing',
    'Current node: KSampler',
    'Progress: 100% - completed',
    'Current node: None',
    'Workflow completed!',
    'Generated 1 outputs:',
    '  - a.png (/tmp/a.png)',
  ]);
});

referenceTest('its usage example tells a failure', [EXECUTING, FAILED], async (reference) => {
  await reference.runWorkflow();
  assert.deepEqual(reference.errors, ['Workflow failed: Node execution failed: Out of memory']);
});

referenceTest('its page finds nothing to restore', [EXECUTING], async (reference) => {
  await reference.load();
  assert.deepEqual([reference.said, reference.errors], [[], []]);
});

referenceTest('its page restores a workflow', [EXECUTING, COMPLETED], async (reference, stub) => {
  await new reference.Client().executeWorkflow('ssh root@box', '/w.json');
  await reference.load();
  assert.deepEqual(reference.errors, []);
  assert.deepEqual(reference.said, ['Restoring workflow: Stub (50%)', 'Progress: 50%', 'Progress: 100%']);
  assert.equal(stub.requests[0].headers['content-type'], 'application/json');
});

referenceTest('its cancel sends neither body nor content type', [EXECUTING], async (reference, stub) => {
  const client = new reference.Client();
  await client.cancelWorkflow(await client.executeWorkflow('ssh root@box', '/w.json'));
  const cancel = stub.requests.at(-1);
  assert.deepEqual([cancel.body, cancel.headers['content-type']], [undefined, undefined]);
});
