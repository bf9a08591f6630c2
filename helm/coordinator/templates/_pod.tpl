{{/* What every pod of the program has. Safety: the restricted Pod Security Standard, field by field. */}}

{{- define "coordinator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "coordinator.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The head of each pod's spec. Takes root, and serviceAccount where it is another than the chart's. */}}
{{- define "coordinator.podHead" -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ default (include "coordinator.serviceAccountName" .root) .serviceAccount }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext: {{- include "coordinator.podSecurity" .root | nindent 2 }}
{{- end -}}

{{/* The environment of each container of the program. Takes root. */}}
{{- define "coordinator.env" -}}
- name: HOME
  value: /tmp
{{- range $name, $value := .root.Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/*
Volumes. The state folder is the pod's own and empty: configuration and keys are mounted into it, and all that lasts is in
the database and the blobs. Takes root, and isHook where the configuration is that of the hook.
*/}}
{{- define "coordinator.volumes" -}}
- name: state
  emptyDir:
    sizeLimit: 64Mi
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
- name: config
  configMap:
    name: {{ include "coordinator.fullname" .root }}{{ if .isHook }}-migrate{{ end }}
- name: database-password
  secret:
    secretName: {{ include "coordinator.databaseSecret" .root }}
    defaultMode: 0440
    items:
      - key: {{ ternary "password" .root.Values.database.passwordKey .root.Values.postgresql.enabled }}
        path: password
{{- with .root.Values.trust.existingConfigMap }}
- name: trust
  configMap:
    name: {{ . }}
{{- end }}
{{- end -}}

{{- define "coordinator.keysVolume" -}}
{{- if eq .root.Values.keys.kind "secret" -}}
- name: keys
  secret:
    secretName: {{ required "keys.existingSecret: name the Secret with the coordinator's keys; docs/operating/kubernetes.md says how it is made, or set keys.kind=volume for a test" .root.Values.keys.existingSecret }}
    defaultMode: 0440
{{- else -}}
- name: keys
  persistentVolumeClaim:
    claimName: {{ include "coordinator.keysClaim" .root }}
{{- end }}
{{- end -}}

{{- define "coordinator.blobVolumes" -}}
{{- if eq .root.Values.blobs.kind "folder" -}}
- name: blobs
  persistentVolumeClaim:
    claimName: {{ include "coordinator.blobsClaim" .root }}
{{- else if .root.Values.blobs.s3.existingSecret -}}
- name: s3-credentials
  secret:
    secretName: {{ .root.Values.blobs.s3.existingSecret }}
    defaultMode: 0440
    items:
      - key: credentials
        path: credentials
{{- end }}
{{- end -}}

{{/* Mounts that every container of the program has. The file is mounted by subPath: its folder is the state folder. */}}
{{- define "coordinator.mounts" -}}
- name: state
  mountPath: /srv/wardround
- name: tmp
  mountPath: /tmp
- name: config
  mountPath: /srv/wardround/coordinator.yaml
  subPath: coordinator.yaml
  readOnly: true
- name: database-password
  mountPath: /run/secrets/wardround/database
  readOnly: true
{{- if .root.Values.trust.existingConfigMap }}
- name: trust
  mountPath: /srv/wardround/trust
  readOnly: true
{{- end }}
{{- end -}}

{{/* The keys, read-only. A Secret that changes is seen by a running process; root.pem beside it is for a start. */}}
{{- define "coordinator.keysMounts" -}}
{{- if eq .root.Values.keys.kind "secret" -}}
- name: keys
  mountPath: /srv/wardround/keys
  readOnly: true
- name: keys
  mountPath: /srv/wardround/root.pem
  subPath: root.pem
  readOnly: true
{{- else -}}
- name: keys
  mountPath: /srv/wardround-keys
  readOnly: true
{{- end }}
{{- end -}}

{{- define "coordinator.blobMounts" -}}
{{- if eq .root.Values.blobs.kind "folder" -}}
- name: blobs
  mountPath: /srv/wardround/blobs
{{- else if .root.Values.blobs.s3.existingSecret -}}
- name: s3-credentials
  mountPath: /run/secrets/wardround/s3
  readOnly: true
{{- end }}
{{- end -}}

{{/* keys.kind volume: wait until the Job of `init` has made the keys, and take the root certificate from beside them. */}}
{{- define "coordinator.waitForKeys" -}}
- name: wait-for-keys
  image: {{ include "coordinator.image" (dict "root" .root "image" .root.Values.image) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [sh, -c]
  args:
    - |
      made=/srv/wardround-keys/coordinator
      until test -f $made/coordinator.yaml; do sleep 1; done
      cp $made/root.pem /srv/wardround/root.pem
  securityContext: {{- include "coordinator.containerSecurity" .root | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 32Mi}
  volumeMounts:
    - name: state
      mountPath: /srv/wardround
    - name: keys
      mountPath: /srv/wardround-keys
      readOnly: true
{{- end -}}
