{{/* Names, labels, images. */}}

{{/*
What all names begin with. A StatefulSet named NAME-redis puts that and 11 characters more into a label, which takes 63;
and Services take no dots. What has to be changed for that ends with a hash of the whole, or two could become one.
*/}}
{{- define "llm-api.fullname" -}}
{{- $whole := .Values.fullnameOverride -}}
{{- if not $whole -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- $whole = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- end -}}
{{- $name := $whole | replace "." "-" -}}
{{- if or (gt (len $name) 46) (ne $name $whole) -}}
{{- $name = printf "%s-%s" ($name | trunc 37 | trimSuffix "-") (sha256sum $whole | trunc 8) -}}
{{- end -}}
{{ $name }}
{{- end }}

{{/* What a component's pods are found by: (list $ "api"). */}}
{{- define "llm-api.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Values.nameOverride | default $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* What all pods are found by that tell metrics. */}}
{{- define "llm-api.metricsSelector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
llm-api/metrics: "true"
{{- end }}

{{/*
The metadata of an object. Takes a dict:
  root         the chart's own context
  component    its name
  suffix       what comes behind the name of the release, if anything does; or `name`, all of it
  labels, annotations   of its own, if there are any
*/}}
{{- define "llm-api.metadata" -}}
{{- $common := .root.Values -}}
name: {{ .name | default (printf "%s%s" (include "llm-api.fullname" .root) (.suffix | default "")) }}
labels:
  {{- include "llm-api.selector" (list .root .component) | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  {{- with merge dict (.labels | default dict) ($common.commonLabels | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge dict (.annotations | default dict) ($common.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The name of an image: (list $ values tag). */}}
{{- define "llm-api.imageName" -}}
{{- $repository := (index . 1).repository -}}
{{- with (index . 0).Values.global.imageRegistry -}}
{{- $repository = printf "%s/%s" . (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") -}}
{{- end -}}
{{ $repository }}:{{ index . 2 }}{{ with (index . 1).digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "llm-api.image" -}}
{{ include "llm-api.imageName" (list . .Values.image (.Values.image.tag | default .Chart.AppVersion)) }}
{{- end }}

{{- define "llm-api.serviceAccountName" -}}
{{- with .Values.serviceAccount -}}
{{ .name | default (ternary (include "llm-api.fullname" $) "default" .create) }}
{{- end -}}
{{- end }}

{{/* As a peer of a NetworkPolicy: all that runs the service, serving or working. */}}
{{- define "llm-api.servicePods" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
      app.kubernetes.io/instance: {{ .Release.Name }}
    matchExpressions:
      - {key: app.kubernetes.io/component, operator: In, values: [api, worker]}
{{- end }}

{{/* The most pods that may serve at a time, but for those of an update. */}}
{{- define "llm-api.replicasMax" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled -}}
{{ .Values.autoscaling.maxReplicas | int }}
{{- else -}}
{{ .Values.replicas | int }}
{{- end -}}
{{- end }}

{{/* The most pods that may work on jobs and on nothing else. */}}
{{- define "llm-api.workersMax" -}}
{{- with .Values.worker -}}
{{- if not .enabled -}}0{{- else if .autoscaling.enabled -}}{{ .autoscaling.maxReplicas | int }}{{- else -}}{{ .replicas | int }}{{- end -}}
{{- end -}}
{{- end }}

{{/*
What the names of a component's pods match, for Prometheus: (list $ "api"). They are NAME-HASH-12345 and NAME-worker-HASH-12345,
which has one part more; of a long name there is less of the hash, and no dash behind it.
*/}}
{{- define "llm-api.podPattern" -}}
{{- $name := include "llm-api.fullname" (index . 0) -}}
{{- if eq (index . 1) "worker" -}}
{{ $name }}-worker-[a-z0-9]+(-[a-z0-9]{5})?
{{- else -}}
{{ $name }}-[a-z0-9]+-[a-z0-9]{5}
{{- end -}}
{{- end }}

{{/*
How many pods a Deployment that is scaled must ask for, if it must: (list $ name minReplicas).

As a rule it asks for none, and the autoscaler's number stands. But a number that an earlier release wrote cannot be left
out: Helm would remove it, and the API server would put 1 in its place. So a fleet that was there before its autoscaler is
given the number that it has, in this release and, as the annotation llm-api/replicas remembers, in all that follow.
*/}}
{{- define "llm-api.replicasKept" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- with lookup "apps/v1" "Deployment" $root.Release.Namespace $name -}}
{{- $scaler := false -}}
{{- range list $name (printf "keda-hpa-%s" $name) -}}
{{- if lookup "autoscaling/v2" "HorizontalPodAutoscaler" $root.Release.Namespace . -}}
{{- $scaler = true -}}
{{- end -}}
{{- end -}}
{{- if or (not $scaler) (hasKey (.metadata.annotations | default dict) "llm-api/replicas") -}}
{{ max .spec.replicas (index $ 2) }}
{{- end -}}
{{- end -}}
{{- end }}
