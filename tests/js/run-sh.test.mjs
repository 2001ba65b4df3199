// examples/run.sh against the stub.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { CANCELLED, COMPLETED, FAILED, startStub } from './stub.mjs';

const SCRIPT = fileURLToPath(new URL('../../examples/run.sh', import.meta.url));

/** @returns {Promise<{ code: number, stdout: string, stderr: string }>} */
function runScript(url, settings, ...words) {
  const env = { PATH: process.env.PATH, BASE_URL: url, ...settings };
  return new Promise((ended) => {
    execFile(SCRIPT, words, { cwd: '/', env }, (error, stdout, stderr) => {
      ended({ code: error?.code ?? 0, stdout, stderr });
    });
  });
}

/** Declares a test that gets what the script did for a workflow that is already at its end. */
function scriptTest(name, end, words, settings, check) {
  test(name, async () => {
    const stub = await startStub([end]);
    try {
      check(await runScript(stub.url, settings, ...words), stub.requests);
    } finally {
      await stub.close();
    }
  });
}

const WORDS = ['ssh root@box', 'w.json'];
const ID = `Workflow ID: ${COMPLETED.workflow_id}\n`;

scriptTest('completed: 0, and the files', COMPLETED, WORDS, {}, (did) => {
  assert.deepEqual(did, { code: 0, stdout: `${ID}completed 100%\n/tmp/a.png\n`, stderr: '' });
});

scriptTest('failed: 1, and why', FAILED, WORDS, {}, (did) => {
  const stderr = 'Node execution failed: Out of memory (node KSampler)\n';
  assert.deepEqual(did, { code: 1, stdout: `${ID}failed 0%\n`, stderr });
});

scriptTest('cancelled: 3', CANCELLED, WORDS, {}, (did) => {
  assert.deepEqual(did, { code: 3, stdout: `${ID}cancelled 0%\n`, stderr: '' });
});

scriptTest('not accepted: 1', COMPLETED, ['ssh root@box', '/w "x".txt'], {}, (did) => {
  assert.deepEqual(did, { code: 1, stdout: '', stderr: 'not accepted: Workflow file not found: /w "x".txt\n' });
});

scriptTest('wrong use: 2', COMPLETED, ['ssh root@box'], {}, (did, requests) => {
  assert.equal(did.code, 2);
  assert.deepEqual(requests, []);
});

scriptTest('a port that is no number: 2', COMPLETED, WORDS, { COMFYUI_PORT: 'abc' }, (did, requests) => {
  assert.deepEqual(did, { code: 2, stdout: '', stderr: 'COMFYUI_PORT is not a number: abc\n' });
  assert.deepEqual(requests, []);
});

scriptTest('what is not set is left to the service', COMPLETED, WORDS, {}, (did, requests) => {
  assert.deepEqual(requests[0].body, { ssh_connection: 'ssh root@box', workflow_file: '//w.json', input_images: [] });
});

const SETTINGS = { WORKFLOW_NAME: 'Größe "1"', OUTPUT_DIR: '~/out', COMFYUI_PORT: '8188', COMFYUI_INPUT_DIR: '/i' };
const IMAGES = ['a b.png', '/c.png', '~/d.png'];

scriptTest('settings and images are sent', COMPLETED, [...WORDS, ...IMAGES], SETTINGS, (did, requests) => {
  assert.equal(did.code, 0);
  assert.deepEqual(requests[0].body, {
    ssh_connection: 'ssh root@box',
    workflow_file: '//w.json',
    workflow_name: 'Größe "1"',
    output_dir: '~/out',
    comfyui_port: 8188,
    comfyui_input_dir: '/i',
    input_images: ['//a b.png', '/c.png', '~/d.png'],
  });
});

test('no service: 4', async () => {
  const stub = await startStub();
  await stub.close();
  assert.equal((await runScript(stub.url, {}, ...WORDS)).code, 4);
});
