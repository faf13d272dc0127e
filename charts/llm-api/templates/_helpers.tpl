{{/* Names, labels, the image. A StatefulSet named NAME-redis puts that and 11 characters more into a label, which takes 63. */}}

{{- define "llm-api.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else if contains (.Values.nameOverride | default .Chart.Name) .Release.Name -}}
{{ .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (.Values.nameOverride | default .Chart.Name) | trunc 46 | trimSuffix "-" }}
{{- end -}}
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

{{/* The labels of a component's objects: (list $ "api"). */}}
{{- define "llm-api.labels" -}}
{{- $root := index . 0 -}}
{{ include "llm-api.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "llm-api.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
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
