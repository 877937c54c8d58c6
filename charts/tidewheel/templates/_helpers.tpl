{{/* Prefix of the names of all objects; short enough for a suffix. */}}
{{- define "tidewheel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of cluster-wide roles, and of roles in watched namespaces: two releases must not meet there. */}}
{{- define "tidewheel.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "tidewheel.fullname" .) -}}
{{- end -}}

{{- define "tidewheel.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object. The selector's come last: what is selected by must not be overridden. */}}
{{- define "tidewheel.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (.Chart.AppVersion | replace "+" "_")
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "tidewheel" -}}
{{- $selector := include "tidewheel.selectorLabels" . | fromYaml -}}
{{- merge (dict) $selector $own .Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "tidewheel.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tidewheel.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image reference; takes (dict "image" values "default" tag). */}}
{{- define "tidewheel.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .default .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tidewheel.operatorImage" -}}
{{- include "tidewheel.image" (dict "image" .Values.image "default" .Chart.AppVersion) -}}
{{- end -}}

{{- define "tidewheel.workerImage" -}}
{{- include "tidewheel.image" (dict "image" .Values.workerImage "default" .Chart.AppVersion) -}}
{{- end -}}

{{- define "tidewheel.leaseName" -}}
{{- default (include "tidewheel.fullname" .) .Values.leaderElection.leaseName -}}
{{- end -}}

{{/* OTEL_RESOURCE_ATTRIBUTES: key=value, sorted by key. */}}
{{- define "tidewheel.resourceAttributes" -}}
{{- $pairs := list -}}
{{- range $key, $value := .Values.otel.resourceAttributes -}}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* What the operator may do where it watches: operator/tidewheel/kube/permissions.py, IN_WATCHED_NAMESPACES. */}}
{{- define "tidewheel.watchedRules" -}}
- apiGroups: ["tidewheel.dev"]
  resources: ["pdservices"]
  verbs: ["get", "list", "watch"]
- apiGroups: ["tidewheel.dev"]
  resources: ["pdservices/status"]
  verbs: ["patch"]
- apiGroups: ["tidewheel.dev"]
  resources: ["pdservices/finalizers"]
  verbs: ["update"]
- apiGroups: ["tidewheel.dev"]
  resources: ["pdservicescalers"]
  verbs: ["get", "list", "watch"]
- apiGroups: ["tidewheel.dev"]
  resources: ["pdservicescalers/status"]
  verbs: ["patch"]
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: [""]
  resources: ["configmaps"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: [""]
  resources: ["services"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: ["policy"]
  resources: ["poddisruptionbudgets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: ["events.k8s.io"]
  resources: ["events"]
  verbs: ["get", "create", "patch"]
{{- end -}}

{{/* Stops values that pass the schema one by one and cannot work together. */}}
{{- define "tidewheel.check" -}}
{{- if and (gt (int .Values.replicaCount) 1) (not .Values.leaderElection.enabled) -}}
{{- fail "leaderElection.enabled: must be true when replicaCount is more than 1, or two operators would act at once" -}}
{{- end -}}
{{- if eq (int .Values.metrics.port) (int .Values.health.port) -}}
{{- fail (printf "health.port: %d is metrics.port too; choose another" (int .Values.health.port)) -}}
{{- end -}}
{{- $names := list -}}
{{- range concat .Values.accelerators .Values.extraAccelerators -}}
{{- if has .name $names -}}
{{- fail (printf "extraAccelerators: there are two rows named %q; rename one, or set accelerators to replace all rows" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $own := list "POD_NAME" "POD_NAMESPACE" "POD_UID" "POD_IP" "NODE_NAME" -}}
{{- if .Values.otel.endpoint -}}
{{- $own = concat $own (list "OTEL_EXPORTER_OTLP_ENDPOINT" "OTEL_EXPORTER_OTLP_PROTOCOL" "OTEL_EXPORTER_OTLP_HEADERS"
  "OTEL_TRACES_SAMPLER" "OTEL_TRACES_SAMPLER_ARG" "OTEL_RESOURCE_ATTRIBUTES") -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name $own -}}
{{- fail (printf "extraEnv: %s is set by the chart; leave it out (those of OTEL_* have values under otel)" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
