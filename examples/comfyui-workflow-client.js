/**
 * A client of comfy-remote for browsers and for Node.js 18 or newer. No dependencies.
 *
 *   import { ComfyUIWorkflowClient } from './comfyui-workflow-client.js';
 *
 *   const client = new ComfyUIWorkflowClient();
 *   const id = await client.executeWorkflow('ssh -p 40738 root@198.53.64.194', '/path/to/w.json', 'My workflow');
 *   await client.monitorWorkflow(id, (progress) => console.log(progress.status, progress.progress_percent));
 *   console.log(await client.getOutputs(id));
 *
 * Every method throws a WorkflowError when the service refuses, and whatever fetch throws when there is no answer.
 * Workflows run on whether anybody watches or not: after a reload, restoreState() finds the newest one.
 */

/**
 * @typedef {object} NodeProgress
 * @property {string} node_id
 * @property {string} node_type
 * @property {'pending' | 'executing' | 'executed' | 'failed'} status
 * @property {number} progress 0 to 100
 * @property {string | null} message
 * @property {string | null} [title]
 */

/**
 * @typedef {object} Output
 * @property {string} filename
 * @property {'image' | 'video' | 'audio' | 'text' | '3d' | 'file'} file_type
 * @property {string} remote_path
 * @property {string | null} local_path null until the file is there
 * @property {boolean} downloaded
 */

/**
 * The fields that programs need most; docs/API.md has them all.
 *
 * @typedef {object} Progress
 * @property {string} workflow_id
 * @property {string} workflow_name
 * @property {'queued' | 'executing' | 'completed' | 'failed' | 'cancelled'} status
 * @property {number | null} queue_position
 * @property {string | null} current_node
 * @property {number} total_nodes
 * @property {number} completed_nodes
 * @property {number} progress_percent 0 to 100
 * @property {NodeProgress[]} nodes
 * @property {Output[]} outputs
 * @property {string | null} error_message
 * @property {string | null} failed_node
 */

/**
 * @typedef {object} ExecuteOptions More fields of the request.
 * @property {string[]} [input_images]
 * @property {string} [output_dir]
 * @property {number} [comfyui_port]
 * @property {string} [comfyui_input_dir]
 * @property {string} [comfyui_output_dir]
 */

/**
 * @typedef {object} MonitorOptions
 * @property {number} [intervalMs] Pause between two looks; 2000 unless told.
 * @property {AbortSignal} [signal] Ends the watching, not the workflow.
 */

/** How many looks in a row may fail before watching is given up. */
const FAILED_LOOKS = 5;

const FINAL = ['completed', 'failed', 'cancelled'];

/** The service refused, or a workflow did not end well. */
export class WorkflowError extends Error {
  /**
   * @param {string} message
   * @param {{ httpStatus?: number, progress?: Progress }} [details]
   */
  constructor(message, { httpStatus, progress } = {}) {
    super(message);
    this.name = 'WorkflowError';
    /** HTTP status of the refusal, if it was one. */
    this.httpStatus = httpStatus;
    /** How the workflow ended, if it was that. */
    this.progress = progress;
  }
}

export class ComfyUIWorkflowClient {
  /** @param {string} [apiBaseUrl] Where the service is. */
  constructor(apiBaseUrl = 'http://localhost:5000') {
    this.apiBaseUrl = apiBaseUrl.replace(/\/+$/, '');
  }

  /**
   * Starts a workflow.
   *
   * @param {string} sshConnection
   * @param {string} workflowFile Path on the machine of the service.
   * @param {string} [workflowName]
   * @param {ExecuteOptions} [options]
   * @returns {Promise<string>} The workflow id.
   */
  async executeWorkflow(sshConnection, workflowFile, workflowName, options = {}) {
    const data = await this.#request('execute', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({
        ...options,
        ssh_connection: sshConnection,
        workflow_file: workflowFile,
        workflow_name: workflowName,
      }),
    });
    return data.workflow_id;
  }

  /**
   * Watches a workflow to its end. A look that fails is repeated at the next turn; only the fifth failure in a row, or
   * the word that there is no such workflow, ends the watching.
   *
   * @param {string} workflowId
   * @param {(progress: Progress) => void} [onProgress] Gets every look.
   * @param {MonitorOptions} [options]
   * @returns {Promise<Progress>} The progress of the completed workflow.
   * @throws {WorkflowError} If it failed or was cancelled; `error.progress.status` tells which.
   */
  async monitorWorkflow(workflowId, onProgress = () => {}, { intervalMs = 2000, signal } = {}) {
    for (let failures = 0; ; await pause(intervalMs, signal)) {
      signal?.throwIfAborted();
      let progress;
      try {
        progress = await this.getProgress(workflowId, { signal });
      } catch (error) {
        failures += 1;
        if (signal?.aborted || error.httpStatus === 404 || failures >= FAILED_LOOKS) throw error;
        continue;
      }
      failures = 0;
      onProgress(progress);
      if (progress.status === 'completed') return progress;
      if (FINAL.includes(progress.status)) {
        throw new WorkflowError(progress.error_message || `Workflow ${progress.status}`, { progress });
      }
    }
  }

  /**
   * @param {string} workflowId
   * @param {{ signal?: AbortSignal }} [options]
   * @returns {Promise<Progress>}
   */
  async getProgress(workflowId, { signal } = {}) {
    return (await this.#request(`${encodeURIComponent(workflowId)}/progress`, { signal })).progress;
  }

  /**
   * Asks to cancel; the workflow is `cancelled` a moment later.
   *
   * @param {string} workflowId
   * @returns {Promise<void>}
   */
  async cancelWorkflow(workflowId) {
    await this.#request(`${encodeURIComponent(workflowId)}/cancel`, { method: 'POST' });
  }

  /**
   * @param {string} workflowId
   * @returns {Promise<Output[]>}
   */
  async getOutputs(workflowId) {
    return (await this.#request(`${encodeURIComponent(workflowId)}/outputs`)).outputs;
  }

  /**
   * The newest workflow, as after a reload of the page.
   *
   * @returns {Promise<Progress | null>} null if there has been none.
   */
  async restoreState() {
    return (await this.#request('state')).state;
  }

  /**
   * @param {string} workflowId
   * @returns {Promise<boolean>} Whether it has not come to an end yet.
   */
  async isActive(workflowId) {
    return (await this.#request(`${encodeURIComponent(workflowId)}/active`)).active;
  }

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   */
  async #request(path, init) {
    const response = await fetch(`${this.apiBaseUrl}/comfyui/workflow/${path}`, init);
    let data;
    try {
      data = await response.json();
    } catch (cause) {
      // What stands between may answer in HTML; the status says more than the parser's complaint.
      if (init?.signal?.aborted) throw cause;
      throw new WorkflowError(`HTTP ${response.status} without a JSON body`, { httpStatus: response.status });
    }
    if (!data.success) throw new WorkflowError(data.message, { httpStatus: response.status });
    return data;
  }
}

/**
 * Waits, or throws the signal's reason as soon as it is aborted.
 *
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop);
      resolve();
    }, ms);
    signal?.addEventListener('abort', stop, { once: true });
  });
}
