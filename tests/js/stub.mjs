// A stand-in for the service with the six routes of the API, for tests of clients. It runs no workflow: each look at
// the progress shows the next of the prepared answers, and the last one for ever.

import { createServer } from 'node:http';

const WORKFLOW = 'comfyui_workflow_1732234567_00abc123';

/** A progress as the service sends it, with some fields changed. */
export function progress(changes = {}) {
  return {
    workflow_id: WORKFLOW,
    workflow_name: 'Stub',
    prompt_id: '0f7c1f6e-6a53-4b0e-9a4c-2a1d54c3f0aa',
    ssh_connection: 'ssh root@box',
    workflow_file: '/w.json',
    status: 'queued',
    queue_position: 1,
    current_node: null,
    total_nodes: 2,
    completed_nodes: 0,
    progress_percent: 0,
    nodes: [],
    queue_time: '2024-11-21T10:30:00Z',
    start_time: null,
    end_time: null,
    last_update: '2024-11-21T10:30:00Z',
    outputs: [],
    error_message: null,
    failed_node: null,
    ...changes,
  };
}

export const QUEUED = progress();
export const EXECUTING = progress({
  status: 'executing', queue_position: null, current_node: 'KSampler', completed_nodes: 1, progress_percent: 50,
});
export const COMPLETED = progress({
  status: 'completed', queue_position: null, completed_nodes: 2, progress_percent: 100,
  end_time: '2024-11-21T10:31:00Z',
  outputs: [{
    filename: 'a.png', file_type: 'image', remote_path: '/o/a.png', local_path: '/tmp/a.png', downloaded: true,
  }],
});
export const FAILED = progress({
  status: 'failed', error_message: 'Node execution failed: Out of memory', failed_node: 'KSampler',
});
export const CANCELLED = progress({ status: 'cancelled' });

/** A look that gets no usable answer. */
export const BROKEN = 'broken';

/**
 * Starts a stub that accepts one workflow and then shows `looks`.
 *
 * @returns {Promise<{ url: string, requests: object[], close: () => Promise<void> }>}
 */
export async function startStub(looks = [COMPLETED]) {
  const requests = [];
  let accepted = false;
  let look = 0;

  const routes = {
    'POST execute': (body) => {
      if (!body.workflow_file?.endsWith('.json')) {
        return [400, { success: false, message: `Workflow file not found: ${body.workflow_file}` }];
      }
      accepted = true;
      return [200, { success: true, workflow_id: WORKFLOW, message: 'Workflow execution started' }];
    },
    'GET state': () => [200, { success: true, state: accepted ? looks[0] : null }],
    [`GET ${WORKFLOW}/progress`]: () => {
      const seen = looks[Math.min(look, looks.length - 1)];
      look += 1;
      return seen === BROKEN ? [502, '<html>bad gateway</html>'] : [200, { success: true, progress: seen }];
    },
    [`POST ${WORKFLOW}/cancel`]: () =>
      look < looks.length
        ? [200, { success: true, message: 'Workflow cancellation initiated' }]
        : [404, { success: false, message: `Workflow not found or already completed: ${WORKFLOW}` }],
    [`GET ${WORKFLOW}/outputs`]: () => [200, { success: true, outputs: looks.at(-1).outputs }],
    [`GET ${WORKFLOW}/active`]: () => [200, { success: true, active: look < looks.length }],
  };

  const server = createServer(async (request, response) => {
    let text = '';
    for await (const part of request) text += part;
    const path = request.url.replace('/comfyui/workflow/', '');
    const body = text === '' ? undefined : JSON.parse(text);
    requests.push({ method: request.method, path, headers: request.headers, body });
    const route = routes[`${request.method} ${path}`];
    const id = path.split('/')[0];
    const [status, answer] = route ? route(body) : [404, { success: false, message: `Workflow not found: ${id}` }];
    response.writeHead(status, { 'Content-Type': typeof answer === 'string' ? 'text/html' : 'application/json' });
    response.end(typeof answer === 'string' ? answer : JSON.stringify(answer));
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));

  return {
    url: `http://127.0.0.1:${server.address().port}`,
    requests,
    close: () => new Promise((closed) => {
      server.closeAllConnections?.();
      server.close(closed);
    }),
  };
}
