{{/* The load test: locust's master and workers, and a short run for `helm test`. */}}

{{/* The Secret with the key that the load is sent with, if one is known. */}}
{{- define "llm-api.loadKeySecret" -}}
{{ .Values.loadTest.callerKeySecret | default (include "llm-api.knownKeySecret" .) }}
{{- end }}

{{- define "llm-api.loadKeyEntry" -}}
{{ ternary .Values.loadTest.callerKeySecretKey .Values.tests.callerKeySecretKey (ne .Values.loadTest.callerKeySecret "") }}
{{- end }}

{{/* A scenario that names no model asks for one that the release has: (list $ scenario). */}}
{{- define "llm-api.loadScenario" -}}
{{- $model := include "llm-api.testedModel" (index . 0) -}}
{{ merge dict (index . 1) (ternary (dict "model" $model) dict (ne $model "")) | toYaml }}
{{- end }}

{{/* Every route; without Redis there are no jobs. */}}
{{- define "llm-api.loadSmoke" -}}
{{- $smoke := .Files.Get "files/smoke.yaml" | fromYaml -}}
{{- $mix := ternary $smoke.mix (omit $smoke.mix "jobs_poll" "jobs_stream") (ne (include "llm-api.hasRedis" .) "") -}}
{{ include "llm-api.loadScenario" (list . (merge (dict "mix" $mix) (omit $smoke "model" "mix"))) }}
{{- end }}

{{- define "llm-api.loadScenarios" -}}
scenario.yaml: |
  {{- with .Values.loadTest.scenario }}
  {{- include "llm-api.loadScenario" (list $ .) | nindent 2 }}
  {{- else }}
  {{- include "llm-api.loadSmoke" . | nindent 2 }}
  {{- end }}
smoke.yaml: |
  {{- include "llm-api.loadSmoke" . | nindent 2 }}
{{- end }}

{{/* How long a run may take, with what it waits for before; of a trace only the trace knows. */}}
{{- define "llm-api.loadSeconds" -}}
{{- $scenario := .Values.loadTest.scenario | default dict -}}
{{- $sent := dig "arrivals" "duration_s" 0 $scenario -}}
{{- range dig "arrivals" "steps" list $scenario -}}
{{- $sent = addf $sent .duration_s -}}
{{- end -}}
{{ addf 600 $sent (dig "timeout_s" 120 $scenario) | ceil }}
{{- end }}

{{/*
What tells one run from another. A Job cannot be changed, so each installation and upgrade makes its own; and what renders
without Helm, as Argo CD does, makes another one where anything about it is another.
*/}}
{{- define "llm-api.loadRun" -}}
{{- $pods := include "llm-api.loadMaster" (list . "") | cat (include "llm-api.loadWorker" (list . "")) -}}
{{ printf "%d %s %v" .Release.Revision $pods .Values.loadTest.workers | sha256sum | trunc 5 }}
{{- end }}

{{/* The name of the run's objects. Of a Job with an index in its pods' names no more than 63 characters are left. */}}
{{- define "llm-api.loadName" -}}
{{ include "llm-api.fullname" (index . 0) }}-load-{{ index . 1 }}
{{- end }}

{{- define "llm-api.loadAddress" -}}
http://{{ include "llm-api.fullname" . }}:{{ .Values.service.port }}
{{- end }}

{{- define "llm-api.loadMaster" -}}
{{- $root := index . 0 -}}
{{- $run := index . 1 -}}
{{- $waited := "300" -}}
{{- include "llm-api.loadPod" (dict
  "root" $root
  "run" $run
  "component" "load-master"
  "args" (concat (list
    "--headless" "--master" "--expect-workers" (toString $root.Values.loadTest.workers) "--expect-workers-max-wait" $waited
    "--host" (include "llm-api.loadAddress" $root)
    "--scenario" "/etc/load/scenario.yaml" "--out" (printf "/results/%s" $run)
  ) ($root.Values.loadTest.args | default list))
  "resources" $root.Values.loadTest.masterResources
  "waits" true
  "results" true
) }}
{{- end }}

{{- define "llm-api.loadWorker" -}}
{{- include "llm-api.loadPod" (dict
  "root" (index . 0)
  "run" (index . 1)
  "component" "load"
  "args" (list "--worker" "--master-host" (include "llm-api.loadName" .))
  "resources" (index . 0).Values.loadTest.resources
) }}
{{- end }}

{{/* A proxy beside the load would run on when it has ended; a run that is moved to another node tells nothing. */}}
{{- define "llm-api.loadAnnotations" -}}
sidecar.istio.io/inject: "false"
linkerd.io/inject: disabled
cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
{{- end }}

{{/*
A pod of the load test. Takes a dict:
  root        the chart's own context
  run         which run
  component   its name
  args        of locust
  resources   its requests and limits
  waits       whether the release must be ready, and answer, before it begins
  results     whether it writes the run's files
*/}}
{{- define "llm-api.loadPod" -}}
metadata:
  labels:
    {{- include "llm-api.selector" (list .root .component) | nindent 4 }}
    llm-api/load-run: {{ .run | quote }}
    app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
    {{- with .root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: load
    llm-api/scenarios: {{ include "llm-api.loadScenarios" .root | sha256sum | printf "sha256-%s" | quote }}
    {{- include "llm-api.loadAnnotations" .root | nindent 4 }}
spec:
  {{- include "llm-api.loadSpec" . | nindent 2 }}
{{- end }}

{{- define "llm-api.loadSpec" -}}
{{- $load := .root.Values.loadTest -}}
{{- $image := include "llm-api.imageName" (list .root $load.image ($load.image.tag | default .root.Chart.AppVersion)) -}}
restartPolicy: Never
terminationGracePeriodSeconds: 10
{{ include "llm-api.everyPod" .root }}
securityContext:
  {{- include "llm-api.podSecurity" .root.Values.runAsUser | nindent 2 }}
# What is measured should not share its node with what measures.
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "llm-api.selector" (list .root "api") | nindent 14 }}
{{- if .waits }}
initContainers:
  - name: ready
    image: {{ $image }}
    imagePullPolicy: {{ $load.image.pullPolicy }}
    command: [python]
    args:
      - -c
      - |
        {{- .root.Files.Get "files/helm_test.py" | nindent 8 }}
    env:
      - name: ADDRESS
        value: {{ include "llm-api.loadAddress" .root }}
      - name: MODEL
        value: {{ dig "model" (include "llm-api.testedModel" .root) ($load.scenario | default dict) | quote }}
      - name: TIMEOUT_S
        value: "300"
      - name: CALLER_KEY
        {{- include "llm-api.loadKey" .root | nindent 8 }}
    {{- with .resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    terminationMessagePolicy: FallbackToLogsOnError
    securityContext:
      {{- include "llm-api.containerSecurity" .root | nindent 6 }}
{{- end }}
containers:
  - name: load
    image: {{ $image }}
    imagePullPolicy: {{ $load.image.pullPolicy }}
    args:
      {{- toYaml .args | nindent 6 }}
    env:
      - name: LOAD_API_KEY
        {{- include "llm-api.loadKey" .root | nindent 8 }}
    {{- if eq .component "load-master" }}
    ports:
      - {name: load, containerPort: 5557, protocol: TCP}
    {{- end }}
    {{- with .resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    terminationMessagePolicy: FallbackToLogsOnError
    securityContext:
      {{- include "llm-api.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if .waits }}
      - {name: scenarios, mountPath: /etc/load, readOnly: true}
      {{- end }}
      {{- if .results }}
      - {name: results, mountPath: /results}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- if .waits }}
  - name: scenarios
    configMap:
      name: {{ include "llm-api.loadName" (list .root .run) }}
  {{- end }}
  {{- if .results }}
  - name: results
    {{- with $load.resultsClaim }}
    persistentVolumeClaim: {claimName: {{ . }}}
    {{- else }}
    emptyDir: {sizeLimit: 1Gi}
    {{- end }}
  {{- end }}
{{- end }}

{{- define "llm-api.loadKey" -}}
valueFrom:
  secretKeyRef: {name: {{ include "llm-api.loadKeySecret" . }}, key: {{ include "llm-api.loadKeyEntry" . }}}
{{- end }}
