#!/usr/bin/env bash
# Runs the Bazel targets tagged `small` (or what the arguments say, such as: //...) without the internet.
# Debian's bazel-bootstrap is used, with stand-ins for the two repositories that it would download; see WORKSPACE for connected use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if ! command -v bazel-4 >/dev/null; then
  # Installing needs the rights for it; where they are missing, the next lines say so and the script fails.
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends bazel-bootstrap bazel-rules-java bazel-rules-proto
fi
make --no-print-directory setup

stand_ins=$(mktemp -d)
trap 'rm -rf "$stand_ins"' EXIT
mkdir -p "$stand_ins"/rules_cc/cc "$stand_ins"/remote_coverage_tools
touch "$stand_ins"/rules_cc/{WORKSPACE,BUILD,cc/BUILD} "$stand_ins"/remote_coverage_tools/WORKSPACE
for name in cc_library cc_binary cc_test cc_import cc_proto_library cc_toolchain cc_toolchain_suite cc_toolchain_alias \
  objc_library objc_import fdo_profile fdo_prefetch_hints; do
  echo "$name = native.$name"
done >"$stand_ins"/rules_cc/cc/defs.bzl
echo 'filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])' >"$stand_ins"/remote_coverage_tools/BUILD

rules() { dirname "$(dpkg -L "bazel-rules-$1" | grep '/WORKSPACE$')"; }

# Debian's Bazel is older than .bazelversion asks for; the tree keeps to what both read.
bazel=$(command -v bazel-4 || command -v bazel)
export PATH="$PWD/.venv/bin:$PATH"
filter=(--test_tag_filters=small --build_tests_only)
[ $# -eq 0 ] || filter=()
"$bazel" --batch test "${@:-//...}" "${filter[@]}" \
  --override_repository=rules_cc="$stand_ins"/rules_cc \
  --override_repository=remote_coverage_tools="$stand_ins"/remote_coverage_tools \
  --override_repository=rules_java="$(rules java)" \
  --override_repository=rules_proto="$(rules proto)" \
  --test_env=PATH --action_env=PATH --test_output=errors --noshow_progress
