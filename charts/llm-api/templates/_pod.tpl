{{/*
The pod template of everything that runs our image. Takes a dict:
  root        the chart's own context
  component   its name
  values      what is set for it: resources, args, extraEnv, affinity, …
  settings    whether it reads the service's settings, with the keys of callers and providers
  ports       a map from name to number
  probes      a map from kind to {path, port, and what a probe takes}
  preStopSeconds, gracePeriodSeconds
*/}}
{{- define "llm-api.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "llm-api.selector" (list $root .component) | nindent 4 }}
    {{- if .settings }}
    llm-api/metrics: "true"
    {{- end }}
    app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
    {{- with merge dict (.values.podLabels | default dict) ($root.Values.commonLabels | default dict) }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .component }}
    {{- if .settings }}
    llm-api/settings: {{ include "llm-api.restartHash" $root | printf "sha256-%s" | quote }}
    {{- with include "llm-api.redisHash" $root }}
    llm-api/redis: {{ . | quote }}
    {{- end }}
    {{- if $root.Values.metrics.annotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "9090"
    prometheus.io/path: /metrics
    {{- end }}
    {{- end }}
    {{- with .values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "llm-api.everyPod" $root | nindent 2 }}
  terminationGracePeriodSeconds: {{ .gracePeriodSeconds }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- include "llm-api.podSecurity" $root.Values.runAsUser | nindent 4 }}
  {{- with .values.extraInitContainers }}
  initContainers:
    {{- tpl (toYaml .) $root | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "llm-api.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      {{- with .values.command }}
      command: {{ toJson . }}
      {{- end }}
      args: {{ toJson .values.args }}
      {{- $env := .values.extraEnv | default list }}
      {{- if or .settings $env }}
      env:
        {{- if .settings }}
        - name: LLM_API_CONFIG
          value: /etc/llm-api/config.yaml
        {{- with include "llm-api.redisEnv" $root }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- end }}
        {{- with $env }}
        {{- tpl (toYaml .) $root | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with .values.extraEnvFrom }}
      envFrom:
        {{- tpl (toYaml .) $root | nindent 8 }}
      {{- end }}
      ports:
        {{- range $name, $number := .ports }}
        - {name: {{ $name }}, containerPort: {{ $number }}, protocol: TCP}
        {{- end }}
      {{- range $kind, $probe := .probes }}
      {{ $kind }}Probe:
        httpGet: {path: {{ $probe.path }}, port: {{ $probe.port }}}
        {{- toYaml (omit $probe "path" "port") | nindent 8 }}
      {{- end }}
      {{- if .preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ .preStopSeconds }}}
      {{- end }}
      {{- with .values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "llm-api.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if .settings }}
        - {name: config, mountPath: /etc/llm-api, readOnly: true}
        {{- if include "llm-api.callersSecret" $root }}
        - {name: callers, mountPath: /run/secrets/callers, readOnly: true}
        {{- end }}
        {{- if $root.Values.webhookSecrets.existingSecret }}
        - {name: webhooks, mountPath: /run/secrets/webhooks, readOnly: true}
        {{- end }}
        {{- range $name, $_ := $root.Values.providerKeys }}
        - {name: provider-{{ $name }}, mountPath: /run/secrets/providers/{{ $name }}, readOnly: true}
        {{- end }}
        {{- end }}
        {{- with .values.extraVolumeMounts }}
        {{- tpl (toYaml .) $root | nindent 8 }}
        {{- end }}
    {{- with .values.extraContainers }}
    {{- tpl (toYaml .) $root | nindent 4 }}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
    {{- if .settings }}
    - name: config
      configMap:
        name: {{ include "llm-api.configName" $root }}
    {{- with include "llm-api.callersSecret" $root }}
    # Secrets are mounted as folders, without subPath: only so does the kubelet replace the files when they change.
    - name: callers
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - {key: {{ $root.Values.callers.key }}, path: keys}
    {{- end }}
    {{- with $root.Values.webhookSecrets }}
    {{- if .existingSecret }}
    - name: webhooks
      secret:
        secretName: {{ .existingSecret }}
        defaultMode: 0440
        items:
          {{- range .keys }}
          - {key: {{ . }}, path: {{ . }}}
          {{- end }}
    {{- end }}
    {{- end }}
    {{- range $name, $secret := $root.Values.providerKeys }}
    - name: provider-{{ $name }}
      secret:
        secretName: {{ $secret.existingSecret }}
        defaultMode: 0440
        items:
          {{- range $secret.keys }}
          - {key: {{ . }}, path: {{ . }}}
          {{- end }}
    {{- end }}
    {{- end }}
    {{- with .values.extraVolumes }}
    {{- tpl (toYaml .) $root | nindent 4 }}
    {{- end }}
  {{- with .values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .values.topologySpreadConstraints }}
    {{- toYaml .values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "llm-api.selector" (list $root $.component) | nindent 10 }}
      # Those of the same update only: otherwise old pods, which are about to go, would decide where new ones come.
      matchLabelKeys: [pod-template-hash]
    {{- end }}
    {{- end }}
{{- end }}

{{/* The probes of what runs the service; one that is set to null is left out. */}}
{{- define "llm-api.probes" -}}
{{- range $kind, $path := dict "startup" "/health" "liveness" "/health" "readiness" "/ready" }}
{{- with index $.Values.probes $kind }}
{{ $kind }}: {{ merge (dict "path" $path "port" "http") . | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* What holds for every pod of a release, whatever runs in it. */}}
{{- define "llm-api.everyPod" -}}
serviceAccountName: {{ include "llm-api.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with concat (.Values.global.imagePullSecrets | default list) (.Values.image.pullSecrets | default list) }}
imagePullSecrets:
  {{- range . }}
  - name: {{ kindIs "map" . | ternary . (dict "name" .) | dig "name" "" }}
  {{- end }}
{{- end }}
{{- range $field := list "runtimeClassName" "dnsPolicy" "dnsConfig" "hostAliases" "nodeSelector" "tolerations" }}
{{- with index $.Values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* A pod's security context; takes its user, or nothing where the cluster chooses one. */}}
{{- define "llm-api.podSecurity" -}}
runAsNonRoot: true
{{- with . }}
runAsUser: {{ int . }}
runAsGroup: {{ int . }}
fsGroup: {{ int . }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "llm-api.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "llm-api.redisEnv" -}}
{{- with .Values.redis -}}
{{- if .existingSecret -}}
- name: REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret }}, key: {{ .existingSecretKey }}}
{{- else if or .enabled .url -}}
{{- if .enabled -}}
{{ include "llm-api.redisPasswordEnv" $ }}
{{ end -}}
- name: REDIS_URL
  value: {{ .url | default (printf "redis://:$(REDIS_PASSWORD)@%s-redis:6379/0" (include "llm-api.fullname" $)) | quote }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The password of the chart's own Redis. What comes behind it in the environment can name it as $(REDIS_PASSWORD). */}}
{{- define "llm-api.redisPasswordEnv" -}}
{{- with .Values.redis.password -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret | default (printf "%s-redis" (include "llm-api.fullname" $)) }}, key: {{ .key }}}
{{- end -}}
{{- end }}

{{/* That password, the same wherever it is asked for: the one in the chart's Secret, or one that is made now. */}}
{{- define "llm-api.redisPassword" -}}
{{- with .Values.redis.password -}}
{{- if not .made -}}
{{- $found := lookup "v1" "Secret" $.Release.Namespace (printf "%s-redis" (include "llm-api.fullname" $)) -}}
{{- $_ := set . "made" (dig "data" .key "" $found | b64dec | default (randAlphaNum 40)) -}}
{{- end -}}
{{ .made }}
{{- end -}}
{{- end }}

{{/*
What changes with the password of Redis, or with its address: who has it in the environment takes a new pod then. Of a
Secret that is not ours only its owner knows how hard it is to guess, so it is hashed with what cannot be guessed either.
It begins with a word: some parsers of YAML take ten digits, or 910e801017, for a number.
Empty where the Secret cannot be seen, as by `helm template`.
*/}}
{{- define "llm-api.redisHash" -}}
{{- with .Values.redis -}}
{{- if and .enabled (not .password.existingSecret) -}}
{{ include "llm-api.redisPassword" $ | sha256sum | trunc 10 | printf "sha256-%s" }}
{{- else -}}
{{- $name := ternary .password.existingSecret .existingSecret .enabled -}}
{{- $key := ternary .password.key .existingSecretKey .enabled -}}
{{- with $name -}}
{{- with lookup "v1" "Secret" $.Release.Namespace . -}}
{{ printf "%s/%s" .metadata.uid (dig "data" $key "" .) | sha256sum | trunc 10 | printf "sha256-%s" }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
