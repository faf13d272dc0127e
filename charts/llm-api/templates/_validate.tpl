{{/* What the schema cannot say: values that do not fit together. */}}
{{- define "llm-api.validate" -}}
{{- $providers := .Values.config.providers | default dict -}}
{{- $replicas := include "llm-api.replicasMax" . | int -}}
{{- if and (gt $replicas 1) (not (include "llm-api.hasRedis" .)) -}}
{{- fail (printf "replicas: up to %d pods, and no Redis: limits would hold for each pod instead of all, and a stream could be resumed only on the pod that began it. Set redis.url or redis.existingSecret, or redis.enabled=true, or replicas=1." $replicas) -}}
{{- end -}}
{{- with .Values.redis -}}
{{- if gt (len (compact (list .url .existingSecret (ternary "here" "" .enabled)))) 1 -}}
{{- fail "redis: one of redis.enabled, redis.url and redis.existingSecret says where it is; more than one is set." -}}
{{- end -}}
{{- end -}}
{{- with .Values.worker -}}
{{- if and .enabled (not (include "llm-api.hasRedis" $)) -}}
{{- fail "worker.enabled: the jobs that it works on are in Redis, and there is none. Set redis.url or redis.existingSecret, or redis.enabled=true." -}}
{{- end -}}
{{- if and .enabled .autoscaling.enabled (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- fail (printf "worker.autoscaling.minReplicas is %v, above worker.autoscaling.maxReplicas, %v." .autoscaling.minReplicas .autoscaling.maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- range $value := list "commonLabels" "podLabels" -}}
{{- range $label, $_ := index $.Values $value -}}
{{- if or (hasPrefix "llm-api/" $label) (regexMatch "^(app.kubernetes.io/(name|instance|component|version|managed-by)|helm.sh/chart)$" $label) -}}
{{- fail (printf "%s.%s: this label is the chart's own; by some of its kind pods are found." $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" (include "llm-api.fullname" .)) -}}
{{- fail (printf "fullnameOverride: the release's name would make it %q, and names of Services begin with a letter. Set it to another." (include "llm-api.fullname" .)) -}}
{{- end -}}
{{- $least := include "llm-api.leastGracePeriodSeconds" . | int -}}
{{- if lt (include "llm-api.gracePeriodSeconds" . | int) $least -}}
{{- fail (printf "termination.gracePeriodSeconds is %v, and a stop may take %d s: preStopSeconds, delaySeconds, longestStreamSeconds, config.jobs.drain_s and 30 s. The kubelet would cut what runs." .Values.termination.gracePeriodSeconds $least) -}}
{{- end -}}
{{- range $kind := list "startup" "liveness" -}}
{{- with dig $kind "terminationGracePeriodSeconds" 0 $.Values.probes -}}
{{- if gt (int .) (include "llm-api.gracePeriodSeconds" $ | int) -}}
{{- fail (printf "probes.%s.terminationGracePeriodSeconds is %v, above the pod's own grace period, %s s." $kind . (include "llm-api.gracePeriodSeconds" $)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.webhookSecrets -}}
{{- if and .existingSecret (not .keys) -}}
{{- fail "webhookSecrets.keys: the entries of webhookSecrets.existingSecret that messages are signed with are missing." -}}
{{- end -}}
{{- if and .keys (not .existingSecret) -}}
{{- fail "webhookSecrets.existingSecret: the Secret with these entries is missing." -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.dnsPolicy "None") (not (dig "nameservers" list (.Values.dnsConfig | default dict))) -}}
{{- fail "dnsConfig.nameservers: with dnsPolicy=None at least one is needed." -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "keda.enabled and autoscaling.enabled: both would set the number of pods. Take one." -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and (or .enabled $.Values.keda.enabled) (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas is %v, above autoscaling.maxReplicas, %v." .minReplicas .maxReplicas) -}}
{{- end -}}
{{- if and .enabled (not (or .streamsPerPod .requestsPerPod .cpuPercent .metrics)) -}}
{{- fail "autoscaling: no metric is left: set streamsPerPod, requestsPerPod, cpuPercent or metrics." -}}
{{- end -}}
{{- end -}}
{{- if .Values.keda.enabled -}}
{{- if not .Values.keda.serverAddress -}}
{{- fail "keda.serverAddress: the address of Prometheus is needed to scale by it." -}}
{{- end -}}
{{- if not (or .Values.autoscaling.streamsPerPod .Values.autoscaling.requestsPerPod .Values.autoscaling.cpuPercent) -}}
{{- fail "keda: no metric is left: set autoscaling.streamsPerPod, requestsPerPod or cpuPercent." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics.podMonitor.enabled and metrics.serviceMonitor.enabled: every pod would be scraped twice. Take one." -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: the Gateway is missing, such as [{name: public, namespace: gateways}]." -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: at least one host name is needed." -}}
{{- end -}}
{{- if and .Values.loadTest.enabled (not (include "llm-api.loadKeySecret" .)) -}}
{{- fail "loadTest.callerKeySecret: the load needs a caller's key in clear, and the chart knows of none. Name a Secret that has one." -}}
{{- end -}}
{{- if and .Values.loadTest.enabled (not (include "llm-api.hasRedis" .)) -}}
{{- range $route := list "jobs_poll" "jobs_stream" -}}
{{- if dig "mix" $route 0 ($.Values.loadTest.scenario | default dict) -}}
{{- fail (printf "loadTest.scenario.mix.%s: jobs are kept in Redis, and there is none. Leave it out, or set redis.url or redis.existingSecret, or redis.enabled=true." $route) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $run := include "llm-api.loadSeconds" . | int -}}
{{- if and .Values.loadTest.enabled (gt $run (int .Values.loadTest.timeoutSeconds)) -}}
{{- fail (printf "loadTest.timeoutSeconds is %v, and the run may take %d s: 600 s until all is there, the times of loadTest.scenario.arrivals, and its timeout_s. It would be given up without a verdict." .Values.loadTest.timeoutSeconds $run) -}}
{{- end -}}
{{- if not (or $providers (include "llm-api.simulated" .)) -}}
{{- fail "config.providers: there is no provider, and simulator.enabled is false." -}}
{{- end -}}
{{- if and $providers (not .Values.config.models) (not (or $providers.openai $providers.anthropic)) -}}
{{- fail "config.models: there is none, and only providers called openai and anthropic bring their own." -}}
{{- end -}}
{{- range $name, $_ := .Values.providerKeys -}}
{{- if not (hasKey $providers $name) -}}
{{- fail (printf "providerKeys.%s: there is no config.providers.%s that would use these keys." $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $public, $model := .Values.config.models -}}
{{- range $model.routes -}}
{{- if not (or (hasKey $providers .provider) (and (eq .provider "simulator") (include "llm-api.simulated" $))) -}}
{{- fail (printf "config.models.%s.routes: there is no config.providers.%s." $public .provider) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
