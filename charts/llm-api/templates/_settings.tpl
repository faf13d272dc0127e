{{/* The service's settings: what the values say, and what follows from the chart. */}}

{{- define "llm-api.simulated" -}}
{{- $enabled := toString .Values.simulator.enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (not .Values.config.providers)) -}}yes{{- end -}}
{{- end }}

{{/* The Secret with callers' keys, if there is one. */}}
{{- define "llm-api.callersSecret" -}}
{{- if .Values.callers.existingSecret -}}
{{ .Values.callers.existingSecret }}
{{- else if not (dig "auth" "keys" dict .Values.config) -}}
{{ include "llm-api.fullname" . }}-callers
{{- end -}}
{{- end }}

{{/* Whether that is the chart's own. */}}
{{- define "llm-api.callersMade" -}}
{{- if not (or .Values.callers.existingSecret (dig "auth" "keys" dict .Values.config)) -}}yes{{- end -}}
{{- end }}

{{/* The Secret with a caller's key in clear, if one is known here. */}}
{{- define "llm-api.knownKeySecret" -}}
{{ .Values.tests.callerKeySecret | default (ternary (include "llm-api.callersSecret" .) "" (eq (include "llm-api.callersMade" .) "yes")) }}
{{- end }}

{{/* The model that tests ask; nothing where the service knows better than the chart which there are. */}}
{{- define "llm-api.testedModel" -}}
{{- $names := list -}}
{{- range $name, $_ := (include "llm-api.settings" . | fromYaml).models -}}
{{- if not (contains "*" $name) -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{ .Values.tests.model | default (first (append $names "")) }}
{{- end }}

{{- define "llm-api.hasRedis" -}}
{{- with .Values.redis -}}{{- if or .enabled .url .existingSecret -}}yes{{- end -}}{{- end -}}
{{- end }}

{{/* All that a stop may take one after the other, and 30 s. */}}
{{- define "llm-api.leastGracePeriodSeconds" -}}
{{- $jobs := dig "jobs" "drain_s" 30 .Values.config | ceil -}}
{{- with .Values.termination -}}
{{ add .preStopSeconds .delaySeconds $.Values.longestStreamSeconds $jobs 30 }}
{{- end -}}
{{- end }}

{{/* From the kubelet's first signal to SIGKILL. */}}
{{- define "llm-api.gracePeriodSeconds" -}}
{{ .Values.termination.gracePeriodSeconds | default (include "llm-api.leastGracePeriodSeconds" .) | int }}
{{- end }}

{{/* The same for a worker, whom no endpoint leads to. */}}
{{- define "llm-api.workerGracePeriodSeconds" -}}
{{ add (dig "jobs" "drain_s" 30 .Values.config | ceil) 30 }}
{{- end }}

{{/* The file that LLM_API_CONFIG names. Whatever is rendered asks for it, so here is where values are checked. */}}
{{- define "llm-api.settings" -}}
{{- include "llm-api.validate" . -}}
{{- $settings := deepCopy .Values.config -}}
{{- if include "llm-api.simulated" . -}}
{{- $address := printf "http://%s-simulator:9000/v1" (include "llm-api.fullname" .) -}}
{{- $_ := set $settings "providers" (merge (dict "simulator" (dict "kind" "simulator" "base_url" $address)) ($settings.providers | default dict)) -}}
{{- if not $settings.models -}}
{{- $route := dict "routes" (list (dict "provider" "simulator")) -}}
{{- $_ := set $settings "models" (dict "gpt-4o-mini" $route "gpt-4o" $route "claude-3-haiku-20240307" $route) -}}
{{- end -}}
{{- end -}}
{{- range $name, $secret := .Values.providerKeys -}}
{{- $files := list -}}
{{- range $secret.keys -}}
{{- $files = append $files (printf "/run/secrets/providers/%s/%s" $name .) -}}
{{- end -}}
{{- $_ := set (index $settings.providers $name) "key_files" $files -}}
{{- end -}}
{{- $chart := dict
  "profile" "production"
  "server" (dict "host" .Values.listenAddress "port" 8000 "metrics_port" 9090)
  "drain" (dict "delay_s" .Values.termination.delaySeconds "timeout_s" .Values.longestStreamSeconds)
  "admission" (dict "replicas" (add (include "llm-api.replicasMax" .) (include "llm-api.workersMax" .)))
-}}
{{- if .Values.worker.enabled -}}
{{- $_ := set $chart "jobs" (dict "worker" false) -}}
{{- end -}}
{{- if include "llm-api.callersSecret" . -}}
{{- $_ := set $chart "auth" (dict "keys_file" "/run/secrets/callers/keys") -}}
{{- end -}}
{{- with .Values.webhookSecrets.keys -}}
{{- $files := list -}}
{{- range . -}}
{{- $files = append $files (printf "/run/secrets/webhooks/%s" .) -}}
{{- end -}}
{{- $_ := set $chart "webhooks" (dict "secret_files" $files) -}}
{{- end -}}
{{- mergeOverwrite $settings $chart | toYaml -}}
{{- end }}

{{/* What of it takes new pods: all, or what running ones do not take over (docs/configuration.md). */}}
{{- define "llm-api.restartHash" -}}
{{- $settings := include "llm-api.settings" . | fromYaml -}}
{{- if eq .Values.configUpdates "live" -}}
{{- $auth := omit ($settings.auth | default dict) "keys" "keys_file" "default_limits" "user_limits" -}}
{{- $settings = set (omit $settings "models" "providers") "auth" $auth -}}
{{- end -}}
{{- $settings | toYaml | sha256sum | trunc 10 -}}
{{- end }}

{{/* Named after its content, a ConfigMap reaches new pods alone, and they must get ready with it. */}}
{{- define "llm-api.configName" -}}
{{ include "llm-api.fullname" . }}-config
{{- if eq .Values.configUpdates "rollout" }}-{{ include "llm-api.restartHash" . }}{{ end -}}
{{- end }}
