// The runners against the stub: what they let pass, and that they can fail.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { COMPLETED, FAILED, progress, startStub } from './stub.mjs';

const folder = mkdtempSync(join(tmpdir(), 'observe-'));
after(() => rmSync(folder, { recursive: true }));
const file = join(folder, 'a.png');
writeFileSync(file, '');

const DONE = { ...COMPLETED, outputs: [{ ...COMPLETED.outputs[0], local_path: file }] };

async function runAgainst(runner, looks, settings = {}) {
  const stub = await startStub(looks);
  const env = {
    COMFY_REMOTE_URL: stub.url, SSH_CONNECTION: 'ssh root@box', WORKFLOW_FILE: '/w.json', HURRY: '1', ...settings,
  };
  const script = fileURLToPath(new URL(runner, import.meta.url));
  const did = await new Promise((ended) => {
    execFile(process.execPath, [script], { env }, (error, stdout, stderr) => {
      ended({ code: error?.code ?? 0, stdout, stderr });
    });
  });
  await stub.close();
  return did;
}

for (const runner of ['client-run.mjs', 'reference-run.mjs']) {
  test(`${runner} is content with a good run`, async () => {
    const did = await runAgainst(runner, [DONE]);
    assert.equal(did.code, 0, did.stderr);
    const seen = JSON.parse(did.stdout);
    assert.deepEqual([seen.workflow_id, seen.statuses], [DONE.workflow_id, ['completed']]);
    assert.deepEqual([seen.last, seen.outputs], [DONE, DONE.outputs]);
  });

  test(`${runner} is content with a failure that it expects`, async () => {
    const did = await runAgainst(runner, [FAILED], { EXPECT_STATUS: 'failed' });
    assert.equal(did.code, 0, did.stderr);
  });
}

const NOWHERE = { ...DONE, outputs: [{ ...COMPLETED.outputs[0], local_path: '/none' }] };
const WRONG = {
  'a failure': [FAILED, /Out of memory/],
  'a file that is not there': [NOWHERE, /not there/],
  'a missing field': [{ ...DONE, prompt_id: undefined }, /progress\.prompt_id is undefined/],
  'a wrong type': [{ ...DONE, total_nodes: '2' }, /progress\.total_nodes is "2"/],
  'an early 100 %': [progress({ status: 'cancelled', progress_percent: 100 }), /cancelled/],
};
for (const [what, [look, complaint]] of Object.entries(WRONG)) {
  test(`client-run.mjs does not let pass ${what}`, async () => {
    const did = await runAgainst('client-run.mjs', [look]);
    assert.equal(did.code, 1);
    assert.match(did.stderr, complaint);
  });
}
