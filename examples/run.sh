#!/usr/bin/env bash
# Runs one workflow through a running comfy-remote, and follows it to its end. Needs curl and jq.
#
#   examples/run.sh "ssh -p 40738 root@198.53.64.194" WORKFLOW.json [IMAGE…]
#
# Settings, all optional: BASE_URL (http://localhost:5000), WORKFLOW_NAME, OUTPUT_DIR, COMFYUI_PORT,
# COMFYUI_INPUT_DIR, COMFYUI_OUTPUT_DIR.
#
# Exit code: 0 completed, 1 failed or not accepted, 2 wrong use, 3 cancelled, 4 the service does not answer any more.
# Stopping this script does not stop the workflow.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
fi
ssh_connection=$1
workflow_file=$2
shift 2
api=${BASE_URL:-http://localhost:5000}/comfyui/workflow

case ${COMFYUI_PORT:-} in
  *[!0-9]*)
    echo "COMFYUI_PORT is not a number: $COMFYUI_PORT" >&2
    exit 2
    ;;
esac

# The service resolves paths from its own folder, not from this one. It expands a leading ~ itself.
absolute() {
  case $1 in
    /* | [~]/*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$PWD" "$1" ;;
  esac
}

images=()
for image in "$@"; do
  images+=("$(absolute "$image")")
done

# A setting that is empty is left out, so that the service's default holds.
request=$(
  jq --null-input \
    --arg ssh_connection "$ssh_connection" \
    --arg workflow_file "$(absolute "$workflow_file")" \
    --arg workflow_name "${WORKFLOW_NAME:-}" \
    --arg output_dir "${OUTPUT_DIR:+$(absolute "$OUTPUT_DIR")}" \
    --arg comfyui_port "${COMFYUI_PORT:-}" \
    --arg comfyui_input_dir "${COMFYUI_INPUT_DIR:-}" \
    --arg comfyui_output_dir "${COMFYUI_OUTPUT_DIR:-}" \
    '$ARGS.named
      | with_entries(select(.value != ""))
      | if .comfyui_port then .comfyui_port |= tonumber else . end
      | . + {input_images: $ARGS.positional}' \
    --args ${images[@]+"${images[@]}"}
)

answer=$(
  curl --silent --show-error -X POST "$api/execute" -H 'Content-Type: application/json' --data "$request"
) || exit 4
if [ "$(jq -r '.success' <<< "$answer")" != true ]; then
  jq -r '"not accepted: \(.message)"' <<< "$answer" >&2
  exit 1
fi
id=$(jq -r '.workflow_id' <<< "$answer")
echo "Workflow ID: $id"
jq -r '.warnings // [] | .[] | "warning: \(.)"' <<< "$answer"

# A lost answer is not the end; ten in a row are.
lost=0
shown=
while true; do
  if ! answer=$(curl --silent --fail --max-time 10 "$api/$id/progress"); then
    lost=$((lost + 1))
    [ "$lost" -lt 10 ] || {
      echo "the service does not answer any more; the workflow may still be running" >&2
      exit 4
    }
    sleep 2
    continue
  fi
  lost=0

  line=$(
    jq -r '.progress
      | "\(.status) \(.progress_percent)%" + if .current_node then " \(.current_node)" else "" end' <<< "$answer"
  )
  [ "$line" = "$shown" ] || echo "$line"
  shown=$line

  status=$(jq -r '.progress.status' <<< "$answer")
  case $status in
    completed | failed | cancelled) break ;;
  esac
  sleep 2
done

jq -r '.progress | select(.error_message)
  | "\(.error_message)" + if .failed_node then " (node \(.failed_node))" else "" end' <<< "$answer" >&2
curl --silent --show-error --fail "$api/$id/outputs" |
  jq -r '.outputs[] | if .downloaded then .local_path else "not downloaded: \(.remote_path)" end'

case $status in
  completed) exit 0 ;;
  cancelled) exit 3 ;;
  *) exit 1 ;;
esac
